"""CIFAR-10 from the images to the frontier, for an accelerator, in pieces of some minutes that go on where they stopped.

python benchmarks/cifar10 extractors     # are the feature networks what they say?
python benchmarks/cifar10 teacher        # again until it says that it is done; --unconditional for the other one
python benchmarks/cifar10 references     # statistics of the real images
python benchmarks/cifar10 pictures       # the teacher, seen and measured
python benchmarks/cifar10 frontier       # all methods on it, again until it is done

Exit code 0: done; 3: this piece is over, the same command goes on; 2: a mistake, told in one sentence.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the extractors are `benchmarks.cifar10.networks:...` wherever this runs

from benchmarks.cifar10 import checks, frontier, pictures, references, teacher  # noqa: E402
from benchmarks.cifar10.places import EXTRACTORS, FILES, Places  # noqa: E402
from benchmarks.pairs import save  # noqa: E402

from onefold.errors import UserError  # noqa: E402
from onefold.progress import terminal_progress  # noqa: E402
from onefold.settings import parse_assignments  # noqa: E402
from onefold.training.pace import Stopped  # noqa: E402

DONE, MISTAKE, MORE = 0, 2, 3


def tell(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def places_of(given: argparse.Namespace) -> Places:
    return Places(given.out, getattr(given, "unconditional", False))


def run_teacher(given: argparse.Namespace) -> int:
    with terminal_progress("teaching") as progress:
        made = teacher.learn(
            places_of(given),
            given.data,
            budget=given.budget,
            device=given.device,
            eager=given.eager,
            settings=parse_assignments(given.set),
            progress=teacher.Piece(progress, 60 * given.minutes),
            tell=tell,
        )
    print(f"done: {made}")
    return DONE


def run_references(given: argparse.Namespace) -> int:
    with terminal_progress("looking") as progress:
        references.make_references(
            places_of(given),
            given.data,
            given.weights,
            given.extractors,
            device=given.device,
            batch_size=given.batch_size,
            progress=progress,
            tell=tell,
        )
    return DONE


def run_extractors(given: argparse.Namespace) -> int:
    with terminal_progress("looking") as progress:
        found = checks.check(
            given.data,
            given.weights,
            given.extractors,
            count=given.count,
            device=given.device,
            batch_size=given.batch_size,
            progress=progress,
        )
    save("cifar10_extractors", {"what": " ".join((checks.__doc__ or "").split()), "extractors": found})
    return DONE


def run_pictures(given: argparse.Namespace) -> int:
    with terminal_progress("measuring") as progress:
        rows = pictures.measure(
            places_of(given),
            given.weights,
            given.extractors,
            count=given.count,
            device=given.device,
            batch_size=given.batch_size,
            progress=progress,
        )
    print("\n".join(map(pictures.told, rows)))
    return DONE


def run_frontier(given: argparse.Namespace) -> int:
    argv = frontier.frontier_argv(
        places_of(given),
        given.data,
        given.weights,
        extractor=given.extractor,
        count=given.count,
        minutes=given.minutes,
        device=given.device,
        jobs=given.jobs,
        more=given.more,
    )
    return frontier.run_frontier(argv)


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="python benchmarks/cifar10", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(run=run)
        one.add_argument("--data", type=Path, default=Path("cifar10.npz"), help="CIFAR-10 as an .npz")
        one.add_argument("--out", type=Path, default=Path("runs/cifar10"), help="folder of all that is made")
        one.add_argument("--device", default="auto")
        return one

    one = command("teacher", run_teacher, "train the teacher, one piece")
    one.add_argument("--budget", default=teacher.BUDGET, help="images, of the whole run")
    one.add_argument("--eager", action="store_true", help="without torch.compile")
    one.add_argument("--set", nargs="*", default=[], help="further settings of `onefold teach`, KEY=VALUE")
    kind(one), piece(one)
    looks(command("references", run_references, "statistics of the real images"), EXTRACTORS)
    one = looks(command("extractors", run_extractors, "check the feature networks on test images"), FILES)
    one.add_argument("--count", type=int, default=1000, help="images of the networks that do not classify")
    one = kind(looks(command("pictures", run_pictures, "samples by class, and Fréchet distances"), EXTRACTORS))
    one.add_argument("--count", type=int, default=10_000)
    one = command("frontier", run_frontier, "the frontier of methods on the teacher, one piece")
    one.add_argument("--extractor", choices=FILES, default="resnet50v2")
    one.add_argument("--count", type=int, default=5_000)
    one.add_argument("--jobs", type=int, default=4, help="students made at the same time")
    one.add_argument("more", nargs="*", help="after --: further words for benchmarks/frontier, which come last")
    weights(kind(piece(one)))
    return whole


def kind(one: argparse.ArgumentParser) -> argparse.ArgumentParser:
    one.add_argument("--unconditional", action="store_true", help="the teacher without classes")
    return one


def piece(one: argparse.ArgumentParser) -> argparse.ArgumentParser:
    one.add_argument("--minutes", type=float, default=9.0, help="of one piece")
    return one


def weights(one: argparse.ArgumentParser) -> argparse.ArgumentParser:
    one.add_argument("--weights", type=Path, default=Path("weights"), help=f"folder of {', '.join(FILES.values())}")
    return one


def looks(one: argparse.ArgumentParser, known: Iterable[str]) -> argparse.ArgumentParser:
    one.add_argument("--extractors", nargs="+", choices=list(known), default=list(known))
    one.add_argument("--batch-size", type=int, default=250, help="images at a time")
    return weights(one)


def main(words: list[str] | None = None) -> int:
    given = parser().parse_args(words)
    try:
        return int(given.run(given))
    except UserError as error:
        tell(f"Error: {error}")
        return MISTAKE
    except Stopped as stopped:
        tell(str(stopped))
        return MORE


if __name__ == "__main__":
    sys.exit(main())
