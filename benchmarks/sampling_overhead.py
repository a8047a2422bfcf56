"""What `onefold.sample` costs over the bare forwards of the same network: the bound is 5 %.

python benchmarks/sampling_overhead.py
"""

from __future__ import annotations

import argparse

import torch
from pairs import interleave, save, summary

import onefold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--teacher", default="fashion28")
    parser.add_argument("--solver", default="dpmpp3m")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    teacher, calls, count = onefold.load_teacher(arguments.teacher, device="cpu"), 10, 64
    x, labels = torch.randn(count, *teacher.shape), torch.arange(count) % 10
    times = torch.linspace(999, 1, calls)

    def ours() -> None:
        onefold.sample(teacher, count, solver=arguments.solver, calls=calls, batch_size=count)

    @torch.inference_mode()
    def forwards() -> None:
        for time in times:
            teacher.module(x, time, class_labels=labels)

    workload = (
        f"{count} images of {arguments.teacher} in {calls} calls, {arguments.solver}, {arguments.threads} thread(s)"
    )
    seconds = interleave(ours, forwards, arguments.pairs)
    save(
        "sampling_overhead", {"what": "onefold.sample / bare forwards", "workload": workload, **summary(seconds, 1.05)}
    )


if __name__ == "__main__":
    main()
