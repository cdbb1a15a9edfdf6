"""Options come from the right source, in the right type, and within their limits."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, dataclass, fields
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenllm.config import ConfigError, convert, default_of, flag, load, option
from greenllm.options import EngineConfig, default_data_dir
from serving.config import ServeConfig


def toml(folder: Path, text: str) -> Path:
    file = folder / "greenllm.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_defaults_are_valid() -> None:
    assert load(ServeConfig, flags={}) == ServeConfig()
    assert load(EngineConfig, flags={"model": None}).model == "bundled"
    with pytest.raises(FrozenInstanceError):
        ServeConfig().port = 1  # type: ignore[misc]


def test_every_option_has_a_help_text_and_a_default() -> None:
    for spec in fields(ServeConfig):
        assert spec.metadata["help"].endswith("."), spec.name
        assert default_of(spec) == getattr(ServeConfig(), spec.name)


NAMES = ("file", "environment", "flag")


@pytest.mark.parametrize("given_by", [(), ("file",), NAMES[:2], NAMES, NAMES[1:], ("flag",)])
def test_flags_win_over_the_environment_and_that_over_the_file(
    tmp_path: Path, given_by: tuple[str, ...]
) -> None:
    ports = {"file": 1001, "environment": 1002, "flag": 1003}
    config = load(
        ServeConfig,
        flags={"port": ports["flag"] if "flag" in given_by else None},
        file=toml(tmp_path, f"port = {ports['file']}\n") if "file" in given_by else None,
        environment={"GREENLLM_PORT": "1002"} if "environment" in given_by else {},
    )
    assert config.port == (ports[given_by[-1]] if given_by else 8000)


def test_sources_are_merged_option_by_option(tmp_path: Path) -> None:
    config = load(
        ServeConfig,
        flags={"device": "cpu"},
        file=toml(tmp_path, 'host = "::1"\nthreads = 3\nprefix_cache = false\npue = 2\n'),
        environment={"GREENLLM_THREADS": "5", "GREENLLM_API_KEYS": "one, two", "PORT": "9"},
    )
    assert (config.device, config.host, config.threads, config.port) == ("cpu", "::1", "5", 8000)
    assert (config.prefix_cache, config.pue, config.api_keys) == (False, 2.0, ("one", "two"))


def test_a_false_flag_was_given() -> None:
    environment = {"GREENLLM_PREFIX_CACHE": "yes"}
    assert load(EngineConfig, flags={}, environment=environment).prefix_cache is True
    config = load(EngineConfig, flags={"prefix_cache": False}, environment=environment)
    assert config.prefix_cache is False


def test_unknown_names_are_refused_with_the_nearest(tmp_path: Path) -> None:
    """From each source alike, also where the value is None."""
    for value in ("int8", None):
        with pytest.raises(ConfigError, match=r"^unknown option 'quantise'; did you mean 'quantiz"):
            load(EngineConfig, flags={"quantise": value})
    with pytest.raises(ConfigError, match=r"^unknown option 'port'$"):
        load(EngineConfig, flags={"port": 80})
    with pytest.raises(ConfigError, match="did you mean 'port'"):
        load(ServeConfig, flags={}, file=toml(tmp_path, "prot = 8000\n"))
    with pytest.raises(ConfigError, match="PROT: no such option; did you mean 'GREENLLM_PORT'"):
        load(ServeConfig, flags={}, environment={"GREENLLM_PROT": "8000"})


@pytest.mark.parametrize("text", ["prot = 8000\n", "[serve]\nport = 8000\n", '"" = 1\n'])
def test_unknown_keys_are_named(tmp_path: Path, text: str) -> None:
    file = toml(tmp_path, text)
    with pytest.raises(ConfigError, match=r"unknown option '(prot|serve|)'") as caught:
        load(ServeConfig, flags={}, file=file)
    assert str(file) in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        load(ServeConfig, flags={}, file=missing)
    with pytest.raises(ConfigError, match=r"greenllm\.toml"):
        load(ServeConfig, flags={}, file=toml(tmp_path, "port = = 1\n"))
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'zone = "T\xfcrkiye"\n')
    with pytest.raises(ConfigError, match=r"latin\.toml"):
        load(ServeConfig, flags={}, file=latin)


@pytest.mark.parametrize("given", ["", ",", " , "])
def test_no_key_among_the_keys_does_not_open_a_server(given: str, tmp_path: Path) -> None:
    for found in ({"flags": {"api_keys": given}},
                  {"flags": {}, "environment": {"GREENLLM_API_KEYS": given}},
                  {"flags": {}, "file": toml(tmp_path, "api_keys = []\n")}):  # fmt: skip
        with pytest.raises(ConfigError, match="--api-keys has no key in it"):
            load(ServeConfig, **found)


def test_a_keys_file_in_the_data_folder_is_used(tmp_path: Path) -> None:
    config = ServeConfig(data_dir=tmp_path)
    assert (config.keys_path, config.needs_key) == (None, False)
    (tmp_path / "keys.json").touch()
    assert (config.keys_path, config.needs_key) == (tmp_path / "keys.json", True)
    named = ServeConfig(data_dir=tmp_path, keys_file=tmp_path / "other.json")
    assert named.keys_path == tmp_path / "other.json"


@pytest.mark.parametrize(
    ("text", "words"),
    [("zone = " + "[" * 100_000, "nested too deeply"), ("# " + "x" * 1_000_000, "1000000 bytes")],
)
def test_a_file_that_is_no_file_of_options_is_told_in_a_sentence(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=rf"greenllm\.toml: .*{words}"):
        load(ServeConfig, flags={}, file=toml(tmp_path, text))


@pytest.mark.parametrize(
    "line",
    [
        'port = "many"',
        "port = 1.5",
        "port = true",
        "port = [1]",
        "pue = false",
        'pue = "high"',
        "pue = inf",
        "pue = nan",
        pytest.param(f"pue = 1{'0' * 400}", id="pue = huge"),
        "prefix_cache = 2",
        'prefix_cache = "perhaps"',
        "api_keys = 5",
        "api_keys = true",
        "api_keys = [[1]]",
        'host = ["a"]',
        "host = {a = 1}",
        "data_dir = 7",
        'dtype = "float64"',
        "dtype = 32",
        'quantize = ["int8"]',
        'max_context = "long"',
    ],
)
def test_wrong_types_in_a_file_are_refused_by_name(tmp_path: Path, line: str) -> None:
    file = toml(tmp_path, line + "\n")
    with pytest.raises(ConfigError) as caught:
        load(ServeConfig, flags={}, file=file)
    assert str(caught.value).startswith(f"{file}: {line.split(' = ')[0]} ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PORT", ""),
        ("PORT", "8000.0"),
        ("PUE", "inf"),
        ("QUANTIZE", "int3"),
        ("ALLOW_PICKLE", "maybe"),
        ("MAX_CONTEXT", "none"),
    ],
)
def test_wrong_texts_in_the_environment_are_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^GREENLLM_{name} "):
        load(ServeConfig, flags={}, environment={f"GREENLLM_{name}": text})


def test_wrong_flags_are_refused_by_name() -> None:
    with pytest.raises(
        ConfigError, match=r"^--quantize must be one of none, int8, int4, nf4, fp8, not 'x'"
    ):
        load(ServeConfig, flags={"quantize": "x"})


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("5", int, 5),
        (5, int, 5),
        ("0.5", float, 0.5),
        (2, float, 2.0),
        ("x", str, "x"),
        ("a/b", Path, Path("a/b")),
        ("True", bool, True),
        ("NO", bool, False),
        ("1", bool, True),
        ("a,b", tuple[str, ...], ("a", "b")),
        (["a", "b"], tuple[str, ...], ("a", "b")),
        (" a , ,b,", tuple[str, ...], ("a", "b")),
        ("", tuple[str, ...], ()),
        ("3", int | None, 3),
        (None, int | None, None),
    ],
)
def test_conversion(value: Any, hint: Any, expected: Any) -> None:
    converted = convert("here", value, hint)
    assert converted == expected
    assert type(converted) is type(expected)


@given(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(),
        st.lists(st.integers() | st.text()),
        st.dictionaries(st.text(), st.integers()),
    ),
    st.sampled_from([int, float, bool, str, tuple[str, ...], int | None]),
)
def test_conversion_gives_the_type_or_a_config_error(value: Any, hint: Any) -> None:
    wanted: Any = {tuple[str, ...]: tuple, int | None: (int, type(None))}.get(hint, hint)
    try:
        converted = convert("here", value, hint)
    except ConfigError:
        with pytest.raises(ConfigError, match=r"^here must be "):
            convert("here", value, hint)
    else:
        assert isinstance(converted, wanted)


OWN: dict[str, Any] = {"intensity_g_per_kwh": 20.0, "intensity_source": "supplier"}


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("max_num_seqs", [1, 512], [0, -1]),
        ("block_size", [1], [0, -16]),
        ("kv_cache_gb", [0.001], [0, -1.0]),
        ("tensor_parallel", [1, 8], [0, -2]),
        ("threads", ["1", "16", "auto", "eco"], ["0", "-1", "many", ""]),
        ("max_batch_tokens", [64, 65], [63, 0]),
        ("device", ["auto", "cpu", "cuda", "cuda:1"], ["tpu", "cuda:", "cuda:x", "gpu", ""]),
        ("max_context", [None, 2], [1, 0, -5]),
        ("speculative_tokens", [1, 16], [0, 17, -1]),
        ("exit_layer", [None, 1, 99], [0, -2]),
        ("pue", [1, 1.5], [0.99, 0]),
        ("receipt_wait_s", [0, 2.5], [-0.1]),
        ("port", [0, 65535], [-1, 65536]),
        ("max_queue", [1], [0, -1]),
        ("max_queue_tokens", [1], [0, -1]),
        ("max_connections", [1], [0, -1]),
        ("client_timeout_s", [0.5], [0, -1.0]),
        ("max_buffered_mb", [8.0], [7.9, 0]),
        ("max_body_mb", [0.5], [0, -1.0]),
        ("keep_alive_s", [0.1], [0, -1.0]),
        ("drain_timeout_s", [0, 1], [-0.5]),
        ("step_timeout_s", [0, 1], [-0.5]),
        ("min_free_memory_mb", [0, 1], [-0.5]),
        ("replicas", [None, 1, 9], [0, -1]),
    ],
)
def test_limits(name: str, allowed: list[Any], refused: list[Any]) -> None:
    for value in allowed:
        assert getattr(ServeConfig(**{name: value}), name) == value
    for value in refused:
        with pytest.raises(ConfigError, match=f"^{flag(name)} must .*got {value}"):
            ServeConfig(**{name: value})


def test_an_own_intensity_needs_a_source_and_is_not_negative() -> None:
    assert EngineConfig(**{**OWN, "intensity_g_per_kwh": 0.0}).intensity_g_per_kwh == 0
    for one, other in permutations(OWN):
        with pytest.raises(ConfigError, match=f"^{flag(one)} needs {flag(other)}$"):
            EngineConfig(**{one: OWN[one]})
    with pytest.raises(ConfigError, match=r"^--intensity-g-per-kwh must not be negative"):
        EngineConfig(**{**OWN, "intensity_g_per_kwh": -1.0})


@pytest.mark.parametrize("least", [1, 3])
def test_fewer_replicas_are_within_bounds(least: int) -> None:
    assert ServeConfig(replicas=3, min_replicas=least).min_replicas == least


@pytest.mark.parametrize("least", [0, -1, 4])
def test_fewer_replicas_are_not_none_and_not_more(least: int) -> None:
    with pytest.raises(ConfigError, match=rf"^--min-replicas must be .*got {least}"):
        ServeConfig(replicas=3, min_replicas=least)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"replica_cpus": 0}, "--replica-cpus must be greater than 0"),
        ({"cluster": "ray://host:10001"}, "--cluster is HOST:PORT or auto"),
        ({"device": "cuda:1"}, "--device is cpu, cuda or auto with --replicas"),
    ],
)
def test_what_replicas_cannot_be_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=f"^{told}"):
        ServeConfig(replicas=2, **options)


@pytest.mark.parametrize("alone", [{"min_replicas": 1}, {"replica_cpus": 2}, {"cluster": "auto"}])
def test_options_of_replicas_need_replicas(alone: dict[str, Any]) -> None:
    (name,) = alone
    with pytest.raises(ConfigError, match=rf"^{flag(name)} needs --replicas$"):
        ServeConfig(**alone)
    assert getattr(ServeConfig(replicas=2, **alone), name) == alone[name]


def test_a_draft_model_must_be_named() -> None:
    for name in ("off", "auto", "prompt_lookup", "early_exit"):
        assert load(EngineConfig, flags={"speculative": name}).speculative == name
    with pytest.raises(ConfigError, match=r"^--draft-model is needed for --speculative draft_mod"):
        load(EngineConfig, flags={"speculative": "draft_model"})
    assert EngineConfig(speculative="draft_model", draft_model="./small").draft_model == "./small"
    assert EngineConfig(draft_model="./small").speculative == "off"


def test_the_ledger_lives_in_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert EngineConfig(data_dir=tmp_path).ledger_path == tmp_path / "ledger.sqlite"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / "greenllm"
    assert EngineConfig().ledger_path == tmp_path / "greenllm" / "ledger.sqlite"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / ".local" / "share" / "greenllm"


def test_any_dataclass_can_be_loaded() -> None:
    @dataclass(frozen=True)
    class Small:
        size: int = option(3, "Size.")

    assert load(Small, flags={"size": "4"}) == Small(4)
    assert flag("max_num_seqs") == "--max-num-seqs"


def test_a_misspelt_environment_variable_is_refused() -> None:
    with pytest.raises(ConfigError, match="GREENLLM_PROT: no such option"):
        load(EngineConfig, flags={}, environment={"GREENLLM_PROT": "9000"})
    found = load(EngineConfig, flags={}, environment={"GREENLLM_TEST_DATA": "x", "HOME": "y"})
    assert found == EngineConfig()


def test_an_error_carries_the_option_it_is_about(tmp_path: Path) -> None:
    file = toml(tmp_path, 'port = "many"\n')
    sources: list[dict[str, Any]] = [
        {"flags": {}, "file": file},
        {"flags": {}, "environment": {"GREENLLM_PORT": "x"}},
        {"flags": {"port": "x"}},
        {"flags": {"port": -1}},
    ]
    for source in sources:
        with pytest.raises(ConfigError) as caught:
            load(ServeConfig, **source)
        assert caught.value.option == "port"
    with pytest.raises(ConfigError) as caught:
        load(ServeConfig, flags={}, file=toml(tmp_path, "prot = 8000\n"))
    assert caught.value.option is None


def test_errors_keep_their_option_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("--port must be lower", "port")))
    assert (str(error), error.option) == ("--port must be lower", "port")


def test_a_meter_that_is_in_no_registry_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="--meter barometer: no meter is called 'barometer'"):
        load(ServeConfig, flags={"meter": "barometer"})
    assert load(ServeConfig, flags={"meter": "replay:run.jsonl"}).meter == "replay:run.jsonl"
