"""What tests cannot import here: modules for packages that are not installed."""

import importlib.util

NEEDS = {
    "benchmark/in_torch.py": "torch",
    "benchmark/torch_models.py": "torch",
    "tensorboard.py": "tensorboardX",
}
collect_ignore = [file for file, package in NEEDS.items() if not importlib.util.find_spec(package)]
