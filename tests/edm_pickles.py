"""Writes pickles in the record form of EDM checkpoints, from our networks with random weights.

Run as a script, as the stand-ins of `torch_utils` and `dnnlib` must not exist where the files are read:
    python tests/edm_pickles.py cases.json
where cases.json is a list of {path, preconditioning: {kind, ...}, network: {kind, ...}, seed, protocol}.
"""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onefold.networks.edm import build_edm

SOURCE = "raise SystemExit('the source text of a record was executed')\n" * 200
# A network of a moment.
TINY: dict[str, Any] = {
    "img_resolution": 8,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "dropout": 0.0,
}
HOOKS = ("_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise AssertionError("never called: this process only writes")


class EasyDict(dict[str, Any]):
    pass


class Persistent:
    """Pickled as the decorator of `torch_utils.persistence` does it."""

    def __init__(self, kind: str, state: dict[str, Any]) -> None:
        self.kind, self.state = kind, state

    def __reduce__(self) -> Any:
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.kind, "state": self.state}
        return _reconstruct_persistent_obj, (meta,), None


def stand_ins() -> None:
    """The modules that the names in the file are looked up in while it is written."""
    for package, name, member in (
        ("torch_utils", "persistence", _reconstruct_persistent_obj),
        ("dnnlib", "util", EasyDict),
    ):
        module = types.ModuleType(f"{package}.{name}")
        setattr(module, member.__name__, member)
        member.__module__ = module.__name__
        sys.modules.update({package: types.ModuleType(package), module.__name__: module})


def state_of(module: torch.nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """A module's __dict__, hooks and all; children become records, containers stay torch's own."""
    hooks: dict[str, Any] = {name: OrderedDict() for name in HOOKS}
    own = {"training": False, "_parameters": OrderedDict(module._parameters), "_buffers": OrderedDict(module._buffers)}
    children = OrderedDict((name, record(child)) for name, child in module._modules.items() if child is not None)
    numbers = {
        "skip_scale": np.sqrt(0.5),
        "eps": 1e-6,
        "num_heads": np.int64(1),
        "weight": None,
        "flag": np.bool_(True),
    }
    more = {"_non_persistent_buffers_set": set(), "_is_full_backward_hook": None, "_modules": children, **numbers}
    return {**own, **hooks, **more, "_init_args": (), "_init_kwargs": arguments}


def record(module: torch.nn.Module) -> Any:
    if isinstance(module, torch.nn.ModuleDict):
        container = torch.nn.ModuleDict()
        container.__dict__["_modules"] = OrderedDict((name, record(child)) for name, child in module.items())
        return container
    arguments = {"in_channels": 8, "init": {"init_mode": "xavier_uniform", "init_weight": np.sqrt(0.2)}}
    return Persistent(type(module).__name__, state_of(module, arguments))


def checkpoint(case: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(case.get("seed", 0))
    network, wrapped = dict(case["network"]), dict(case["preconditioning"])
    family, kind = network.pop("kind"), wrapped.pop("kind")
    unet = build_edm(family, network).requires_grad_(False)
    model = Persistent(family, state_of(unet, copy.deepcopy(network)))
    state = {**state_of(torch.nn.Module(), dict(network)), **wrapped, "label_dim": 0, "use_fp16": True}
    state["_modules"] = OrderedDict(model=model)
    return {
        "ema": Persistent(kind, state),
        "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5}),
        "augment_pipe": Persistent("AugmentPipe", {"p": 0.12, "xflip": 1e8, "_init_kwargs": EasyDict(xflip=1e8)}),
        "dataset_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset", path="data.zip", use_labels=False),
    }


def write(cases: list[dict[str, Any]], folder: Path) -> None:
    """All files by one other process."""
    orders = folder / "orders.json"
    orders.write_text(json.dumps(cases))
    done = subprocess.run([sys.executable, __file__, str(orders)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def main() -> None:
    stand_ins()
    for case in json.loads(Path(sys.argv[1]).read_text()):
        with Path(case["path"]).open("wb") as file:
            pickle.dump(checkpoint(case), file, protocol=case.get("protocol", pickle.DEFAULT_PROTOCOL))


if __name__ == "__main__":
    main()
