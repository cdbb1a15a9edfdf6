"""The OpenVINO runner: decoder graphs on the CPU, built from safetensors weights."""
