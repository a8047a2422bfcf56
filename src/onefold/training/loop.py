"""The engine: it runs a method's updates, averages, schedules, logs, saves, and goes on where it stopped.

One process and many run the same code. Each takes its rows of every global batch; gradients are averaged by one
all-reduce after the last micro-batch, without wrapping the networks, so a method sees plain modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from onefold import seeds
from onefold.errors import DivergedError, UserError, first_line
from onefold.pictures import save_png
from onefold.progress import Progress, Tell, silent
from onefold.training.budget import Budget
from onefold.training.checkpoint import optimizer_tensors, restore_optimizer
from onefold.training.contract import HOST, Batch, Draw, Method, Update
from onefold.training.ema import Averages
from onefold.training.folder import RunFolder
from onefold.training.logs import Window
from onefold.training.outlook import Outlook, Watch
from onefold.training.pace import Pace, Stopped
from onefold.training.settings import RunSettings
from onefold.training.sharing import average, rows_of


class Engine:
    """One run of one method."""

    def __init__(
        self,
        method: Method,
        settings: RunSettings,
        config: Mapping[str, Any],
        accelerator: Accelerator,
        *,
        precision: str = "fp32",
        result: str = "result",
        identity: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        tell: Tell | None = None,
    ) -> None:
        self.method, self.settings, self.accelerator = method, settings, accelerator
        self.config, self.identity, self.result = dict(config), dict(identity or {}), result
        self.main, self.world, self.rank = (
            accelerator.is_main_process,
            accelerator.num_processes,
            accelerator.process_index,
        )
        self.report: Progress = progress if progress is not None and self.main else silent
        self.tell: Tell = tell if tell is not None and self.main else ignore
        self.device = accelerator.device
        self.place_networks()
        self.rows = rows_of(settings.batch_size, self.world, self.rank, settings.micro_batches)
        self.budget = Budget.parse(settings.budget)
        self.folder, self.precision = RunFolder(Path(settings.out)), precision
        self.averages = Averages(
            {n: method.networks[n] for n in method.averaged}, settings.ema_half_life, settings.ema_share
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.window, self.facts, self.calls, self.forwards = Window(), dict[str, Any](), dict[str, float](), 0.0
        self.step, self.best, self.looked, self.saved, self.followed = 0, float("inf"), -1, -1, -1
        self.broken = {name: torch.zeros((), dtype=torch.bool, device=self.device) for name in method.optimizers}
        self.pace = Pace(self.world, self.device)

    # -- one run ---------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train until the budget is used up; returns the cost. A stop by signal leaves a checkpoint."""
        self.open()
        try:
            self.resume()
            with self.accelerator.main_process_first():
                self.method.make_ready(self.folder.path, self.report)
            self.prepare_networks()
            with self.pace.catching_signals(), self.own_randomness():
                self.loop()
            return self.finish()
        finally:
            self.folder.close()
            if self.settings.trackers:
                self.accelerator.end_training()

    def open(self) -> None:
        changed = self.folder.check(self.config)
        self.accelerator.wait_for_everyone()
        if self.main:
            self.folder.open(self.config)
        for change in changed:
            self.tell(f"changed since the run began: {change}")
        if self.settings.trackers:
            self.accelerator.init_trackers("onefold", config=scalars(self.config))
        self.accelerator.wait_for_everyone()

    def place_networks(self) -> None:
        """On the device, and the same weights in every process."""
        for network in self.method.networks.values():
            network.to(self.device)
            if self.world > 1:
                for tensor in network.state_dict().values():
                    dist.broadcast(tensor, src=0)

    def prepare_networks(self) -> None:
        """Switches that act in place, so that the method keeps its own modules."""
        networks = self.method.networks
        if self.settings.gradient_checkpointing:
            switches = {name: getattr(one, "enable_gradient_checkpointing", None) for name, one in networks.items()}
            able = [switch for switch in switches.values() if switch is not None]
            if not able:
                name = next(iter(networks))
                raise UserError(f"network {name!r} cannot recompute activations; set gradient_checkpointing=false")
            for switch in able:  # smaller ones beside the generator, as heads are, have none and need none
                switch()
        if self.settings.compile:
            for network in networks.values():
                network.compile()

    def loop(self) -> None:
        auto, chosen = self.budget.share(20).at_least(seconds=15), self.settings.sample_every
        sample_every = auto if chosen == "auto" else Budget.parse(chosen)
        if self.step == 0:
            self.look()  # what training is compared with is drawn here, on nobody's budget
        self.pace.start(self.images, {"sample": sample_every, "save": Budget.parse(self.settings.checkpoint_every)})
        self.report(self.images, self.expected_images, begin=True)
        watch = self.watch()
        with Ahead(self.draw, self.step) as batches:
            while self.progress < 1:
                with watch:
                    self.train_step(next(batches))
                if watch.tick():
                    self.tell(self.outlook(watch).line)
                self.calls, self.forwards = watch.calls, watch.forwards
                self.after_step()

    def rehearse(self) -> Outlook:
        """A few steps that are kept nowhere: what the run would cost."""
        self.method.make_ready(None, silent)
        self.prepare_networks()
        watch = self.watch()
        with self.own_randomness():
            while not watch.tick():
                with watch:
                    self.train_step(self.draw(self.step))
        return self.outlook(watch)

    def own_randomness(self) -> AbstractContextManager[None]:
        """Steps seed torch's generators; the caller's state comes back."""
        return torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])

    def watch(self) -> Watch:
        own = self.settings.batch_size / self.world
        return Watch({**self.method.frozen, **self.method.networks}, self.device, own, self.method.turns)

    def outlook(self, watch: Watch) -> Outlook:
        return watch.outlook(self.budget, self.settings.batch_size)

    def after_step(self) -> None:
        due = self.pace.tick(self.images)
        if self.step % self.settings.log_every == 0:
            self.write_log()
        self.report(self.images, self.expected_images, **self.facts)
        if "sample" in due:
            self.look()
        if "save" in due or "stop" in due:
            self.save()
        if "stop" in due:
            raise Stopped(f"stopped after {self.images:,} images; the same command goes on from there")

    def finish(self) -> dict[str, Any]:
        self.write_log()
        self.look()
        self.save()
        if self.main:
            self.method.save(self.folder.path / self.result, self.averaged_networks, self.cost)
        self.accelerator.wait_for_everyone()
        self.report(self.images, self.images)
        return self.cost

    @property
    def images(self) -> int:
        return self.step * self.settings.batch_size

    @property
    def progress(self) -> float:
        return self.budget.progress(self.images, self.pace.seconds)

    @property
    def expected_images(self) -> int | None:
        """What the budget comes to, for the progress bar: unknown before a time budget has begun to be used."""
        if self.budget.images is not None:
            return self.budget.images
        return round(self.images / self.progress) if self.images and self.progress else None

    @property
    def cost(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "steps": self.step,
            "seconds": round(self.pace.seconds, 1),
            "calls": {name: round(each * self.images) for name, each in self.calls.items()},
            "forwards": round(self.forwards * self.images),  # of the teacher, as much work as all of it
            "processes": self.world,
            "device": str(self.device),
        }

    @property
    def averaged_networks(self) -> dict[str, torch.nn.Module]:
        return {**self.method.networks, **self.averages.networks}

    # -- one step --------------------------------------------------------------------------------------------------

    def draw(self, step: int) -> list[dict[str, Tensor]]:
        draws = (Draw(self.settings.seed, step, rows, self.settings.batch_size) for rows in self.rows)
        return [{k: ready(v, self.device) for k, v in self.method.prepare(draw).items()} for draw in draws]

    def train_step(self, drawn: list[dict[str, Tensor]]) -> None:
        """All updates of one batch. Dropout is a function of (seed, step, process), so no generator state is saved."""
        torch.manual_seed(seeds.mix(self.settings.seed, seeds.STEP, self.step, self.rank))
        batches = [
            Batch(
                self.step,
                min(self.progress, 1.0),
                {k: v if k.startswith(HOST) else v.to(self.device, non_blocking=True) for k, v in tensors.items()},
            )
            for tensors in drawn
        ]
        streams = [self.method.updates(batch) for batch in batches]
        while self.next_update(streams):
            pass
        if self.method.averaged and self.followed != self.step:
            raise RuntimeError("a batch marked no update for the averages; mark its last with ema=True")
        self.step += 1

    def next_update(self, streams: list[Iterator[Update]]) -> bool:
        """The next update of every micro-batch, one after the other so that only one graph is alive, then the step."""
        update = self.advance(streams[0])
        if update is None:
            if any(self.advance(stream) is not None for stream in streams[1:]):
                raise RuntimeError("micro-batches yielded unequal numbers of updates")
            return False
        name, averaged = update.optimizer, update.ema
        self.method.optimizers[name].zero_grad(set_to_none=True)
        self.backward(update)
        for stream in streams[1:]:
            update = self.advance(stream)
            if update is None:
                raise RuntimeError("micro-batches yielded unequal numbers of updates")
            if update.optimizer != name:
                raise RuntimeError(f"micro-batches went apart: updates of {name!r} and {update.optimizer!r} met")
            self.backward(update)
        del update
        self.apply(name, averaged)
        return True

    def advance(self, stream: Iterator[Update]) -> Update | None:
        update = next(stream, None)
        if not torch.is_grad_enabled() or torch.is_autocast_enabled(self.device.type):
            raise RuntimeError(
                "training under no_grad or autocast: leave it around the run, and yield nothing inside one"
            )
        return update

    def backward(self, update: Update) -> None:
        loss = update.loss / len(self.rows)
        self.scaler.scale(loss).backward()
        logs = {"loss" if update.optimizer == "main" else f"loss_{update.optimizer}": update.loss, **update.logs}
        self.window.add(logs, weight=1 / len(self.rows))

    def apply(self, name: str, averaged: bool) -> None:
        optimizer = self.method.optimizers[name]
        rate = self.method.learning_rate(name, self.images, min(self.progress, 1.0))
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.world > 1:
            average(gradients, self.world)
        self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.settings.clip:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.clip, norm)
        if not self.scaler.is_enabled():  # the scaler skips such a step by itself
            self.broken[name] |= ~torch.isfinite(norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        self.window.add({"grad_norm" if name == "main" else f"grad_norm_{name}": norm})
        if averaged and self.method.averaged:
            if self.followed == self.step:
                raise RuntimeError("a batch marked more than one update for the averages; mark one with ema=True")
            self.followed = self.step
            self.averages.update(self.images + self.settings.batch_size, self.settings.batch_size)

    # -- what people look at ---------------------------------------------------------------------------------------

    def check_finite(self) -> None:
        """A non-finite gradient reaches every process through the all-reduce, so all of them stop here together."""
        # The scaler of fp16 skips a bad step and halves; below 1 every step was bad.
        broken = [name for name, flag in self.broken.items() if bool(flag)]
        if broken or (self.scaler.is_enabled() and self.scaler.get_scale() < 1):
            turn = f" in the turn of {broken[0]!r}" if broken and len(self.broken) > 1 else ""
            raise DivergedError(
                f"the loss or a gradient became infinite or NaN by step {self.step}{turn}; the last good checkpoint is kept: "
                "lower the learning rate, check the data, or use precision=fp32"
            )

    def write_log(self) -> None:
        if not self.window.sums:
            return
        self.check_finite()
        self.window.share(self.reduce)
        means = self.window.means()
        rate = self.pace.rate(self.images)
        row = {
            "step": self.step,
            "images": self.images,
            **means,
            "lr": self.current_rates(),
            "seconds": round(self.pace.seconds, 3),
            "images_per_second": round(rate, 2),
        }
        if self.main:
            self.folder.journal.write(row)
        if self.settings.trackers:
            self.accelerator.log({**means, "images_per_second": rate}, step=self.step)
        self.facts = {"loss": means.get("loss"), "images_per_second": rate}

    def current_rates(self) -> dict[str, float]:
        return {name: float(o.param_groups[0]["lr"]) for name, o in self.method.optimizers.items()}

    def look(self) -> None:
        """Validate and draw with the averaged weights; keep the best. One process does it, the others go on."""
        self.check_finite()
        done, self.looked = self.looked == self.step, self.step
        if done or not self.main:
            return
        with self.pace.standing_still():
            self.look_closely()

    def look_closely(self) -> None:
        numbers = self.method.validate(self.averaged_networks)
        self.folder.journal.write({"step": self.step, "images": self.images, "validation": numbers})
        if self.settings.trackers:
            self.accelerator.log(numbers, step=self.step)
        for concern in self.method.concerns():
            self.tell(concern)
        self.draw_picture()
        value = next(iter(numbers.values()), None)
        if value is not None and value < self.best and self.step:
            self.best = value
            self.method.save(self.folder.path / "best", self.averaged_networks, self.cost)

    def draw_picture(self) -> None:
        picture = self.method.picture(self.averaged_networks)
        save_png(picture, self.folder.path / "samples" / f"{self.images:010d}.png")

    # -- what is kept ----------------------------------------------------------------------------------------------

    def save(self) -> None:
        self.check_finite()
        self.window.share(self.reduce)
        done, self.saved = self.saved == self.step, self.step
        if done or not self.main:
            return
        self.folder.journal.sync()
        sums, weights = self.window.state()
        tensors = {f"window.{name}": value for name, value in sums.items()}
        for kind, networks in (("network", self.method.networks), ("average", self.averages.networks)):
            for name, network in networks.items():
                tensors |= {f"{kind}.{name}.{key}": value for key, value in network.state_dict().items()}
        for name, optimizer in self.method.optimizers.items():
            tensors |= optimizer_tensors(optimizer, f"optimizer.{name}.")
        facts = {
            "seconds": self.pace.seconds,
            "best": self.best if self.best < float("inf") else None,
            "looked": self.looked,
            "lr": self.current_rates(),
            "window_weights": weights,
            "journal_bytes": self.folder.journal.size,
            "scaler": self.scaler.state_dict(),
            "precision": self.precision,
            "identity": self.identity,
            "calls": self.calls,
            "forwards": self.forwards,
        }
        self.folder.checkpoints.write(self.step, tensors, facts)

    def resume(self) -> None:
        found = self.read_checkpoint()
        if found is None:
            return
        try:
            self.restore(*found)
        except torch.OutOfMemoryError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"the checkpoint in {self.folder.path} does not fit this run ({first_line(error)}); restore a copy, or delete "
                "checkpoints/ to start again"
            ) from error

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        for key, value in self.identity.items():
            if facts["identity"].get(key) != value:
                raise UserError(
                    f"the {key} of this run changed since it was interrupted; bring it back or choose another --out"
                )
        for kind, networks in (("network", self.method.networks), ("average", self.averages.networks)):
            for name, network in networks.items():
                network.load_state_dict(under(tensors, f"{kind}.{name}."))
        for name, optimizer in self.method.optimizers.items():
            restore_optimizer(optimizer, tensors, f"optimizer.{name}.")
            optimizer.param_groups[0]["lr"] = facts["lr"][name]
        self.scaler.load_state_dict(facts["scaler"])
        sums = {name: value.to(self.device) for name, value in under(tensors, "window.").items()}
        self.window.restore(sums, facts["window_weights"])
        self.step, self.pace.seconds_before = facts["step"], facts["seconds"]
        self.looked, self.calls, self.forwards = facts["looked"], facts["calls"], facts.get("forwards", 0.0)
        self.best = facts["best"] if facts["best"] is not None else float("inf")
        self.saved = self.step
        if facts["precision"] != self.precision:
            self.tell(f"changed since the run began: precision: {facts['precision']} -> {self.precision}")
        self.tell(f"going on after {self.images:,} images")

    def read_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The first process chooses, the others read the same one; nobody goes on before all have read."""
        found = self.folder.checkpoints.read_newest(self.tell) if self.main else None
        if self.main:
            self.folder.journal.cut(found[1]["journal_bytes"] if found else 0)
        if self.world > 1:
            chosen = torch.tensor([found[1]["step"] if found else -1], device=self.device)
            dist.broadcast(chosen, src=0)
            if not self.main and int(chosen) >= 0:
                found = self.folder.checkpoints.read(int(chosen))
            self.accelerator.wait_for_everyone()
        return found

    def reduce(self, values: Tensor) -> Tensor:
        if self.world > 1:
            dist.all_reduce(values)
            values = values / self.world
        return values


class Ahead:
    """Batches prepared one step ahead, in one thread; what it raises is raised by `next`."""

    def __init__(self, draw: Callable[[int], list[dict[str, Tensor]]], step: int) -> None:
        self.draw, self.step = draw, step
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="onefold-data")
        self.future: Future[list[dict[str, Tensor]]] = self.pool.submit(draw, step)

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def __next__(self) -> list[dict[str, Tensor]]:
        batch = self.future.result()
        self.step += 1
        self.future = self.pool.submit(self.draw, self.step)
        return batch


def ready(value: Tensor, device: torch.device) -> Tensor:
    """Pinned memory is copied to the device while it computes."""
    return value.pin_memory() if device.type == "cuda" else value


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def scalars(config: Mapping[str, Any]) -> dict[str, Any]:
    """Trackers take plain values only."""
    return {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in config.items()}


def ignore(*_: Any, **__: Any) -> None:
    """Said to nobody."""
