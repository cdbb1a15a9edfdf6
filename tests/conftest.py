"""Before anything loads torch: its idle threads must not spin, on machines that tests share."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
