"""What tests cannot import here: modules for peers that are not installed."""

import importlib.util

collect_ignore = (
    []
    if importlib.util.find_spec("torch")
    else ["benchmark/in_torch.py", "benchmark/torch_models.py"]
)
