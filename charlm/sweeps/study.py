"""The trials of a search as Optuna knows them, in a journal that several processes and machines may share.

What Optuna's samplers draw depends on a random generator that its journal does not keep. Here every trial has a
generator of its own, so that a search that was killed draws what it would have drawn.
"""

from __future__ import annotations

import copy
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from charlm.errors import UsageError, first_line
from charlm.run.search_options import Range, SearchOptions, number
from charlm.sweeps.folder import JobRecord

REDUCTION = 3  # of successive halving: one in so many trials goes on
STATES = {  # a trial that diverged tells the sampler where not to look, one that failed does not
    "finished": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "diverged": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


class Halving(BasePruner):
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934, section 3.1).

    After validation 1, 3, 9 …, of which `Trials` leaves out the first ones, a trial ends unless its loss is in the best
    third of those that came so far. None does before `startup` trials have ended. Optuna's own leaves marks in the
    journal, so that a decision that a kill interrupted would be made again in another way.
    """

    def __init__(self, startup: int) -> None:
        self.startup = startup

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether `trial` ends after its last validation."""
        step, trials = trial.last_step, study.get_trials(deepcopy=False)
        if step is None or REDUCTION ** round(math.log(step, REDUCTION)) != step:
            return False
        if sum(other.state.is_finished() for other in trials) < self.startup:
            return False
        losses = [other.intermediate_values[step] for other in trials if step in other.intermediate_values]
        better = sum(loss < trial.intermediate_values[step] for loss in losses)
        return better >= max(1, len(losses) // REDUCTION)


class Repeatable(BaseSampler):
    """Draws like the sampler of `options`, from a generator of its own for each trial, and for each option in it."""

    def __init__(self, options: SearchOptions) -> None:
        self.options = options

    def _sampler(self, trial: FrozenTrial, name: str = "") -> BaseSampler:
        seed = zlib.crc32(f"{self.options.seed} {trial.number} {name}".encode())
        if self.options.sampler == "random":
            return RandomSampler(seed=seed)
        return TPESampler(seed=seed, n_startup_trials=self.options.startup, constant_liar=True)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The options that are drawn together."""
        return self._sampler(trial).infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        """Their values."""
        return self._sampler(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """The value of another option."""
        sampler = self._sampler(trial, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)


class Trials:
    """The study of a search, whose journal is in its `folder`. Raises UsageError if that cannot be read."""

    def __init__(self, folder: Path, options: SearchOptions) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.options, self.space = options, options.parameters()
        self._locks = folder / ".jobs"
        self._claims: dict[int, FileLock] = {}
        journal = folder / "journal.log"
        # A killed process releases it at once, unlike Optuna's own. Of a lock, Optuna calls only acquire and release.
        lock: Any = FileLock(self._locks / "journal.lock")
        with lock:
            mend(journal)
        pruners: dict[str | None, BasePruner] = {
            "median": MedianPruner(options.startup),
            "halving": Halving(options.startup),
        }
        try:
            self.study = optuna.create_study(
                study_name="search",
                storage=JournalStorage(JournalFileBackend(str(journal), lock)),
                sampler=Repeatable(options),
                pruner=pruners.get(options.pruner, NopPruner()),
                load_if_exists=True,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{journal} is no journal of a search: {first_line(error)}") from None

    def all(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self.study.get_trials(deepcopy=False)

    @contextmanager
    def claimed(self) -> Iterator[Trial | None]:
        """What `claim` returns, which is released in the end."""
        trial = self.claim()
        try:
            yield trial
        finally:
            if trial is not None:
                self.release(trial)

    def claim(self, *, new: bool = True) -> Trial | None:
        """A trial for this process alone: one whose process was killed, else a `new` one; None if there are enough."""
        with FileLock(self._locks / "claim.lock"):
            return self._claim(new)

    def release(self, trial: Trial) -> None:
        """Leave a trial to other processes."""
        self._claims.pop(trial.number).release()

    def _claim(self, new: bool) -> Trial | None:
        for frozen in self.all():
            if frozen.state == TrialState.RUNNING and self._lock(frozen.number):
                return self._filled(Trial(self.study, frozen._trial_id))
        if not new or len(self.all()) >= self.options.trials:
            return None
        trial = self.study.ask()
        if not self._lock(trial.number):
            raise RuntimeError(f"another process has trial {trial.number}")
        return self._filled(trial)

    def _lock(self, number: int) -> bool:
        lock = FileLock(self._locks / f"trial-{number}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return False
        self._claims[number] = lock
        return True

    def _filled(self, trial: Trial) -> Trial:
        for name, values in self.space.items():
            trial._suggest(name, distribution(values))
        return trial

    def settings(self, trial: Trial | FrozenTrial) -> dict[str, str]:
        """The settings of a trial by the options' full names, as they are written on the command line."""
        return {
            name: number(values, trial.params[name]) if isinstance(values, Range) else trial.params[name]
            for name, values in self.space.items()
        }

    def complete(self) -> bool:
        """Whether all trials have ended."""
        found = self.all()
        return len(found) >= self.options.trials and all(trial.state.is_finished() for trial in found)

    def hopeless(self, trial: Trial, number: int, nats: float) -> bool:
        """Keep the loss of the validation `number`. Returns whether the trial should end.

        A trial that was killed repeats validations, and what is decided about one depends on nothing after it.
        """
        if number not in self._frozen(trial).intermediate_values:
            trial.report(nats, number)
        if number <= self.options.warmup:
            return False
        frozen = copy.copy(self._frozen(trial))
        frozen.intermediate_values = {n: value for n, value in frozen.intermediate_values.items() if n <= number}
        return self.study.pruner.prune(self.study, frozen)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self.study._storage.get_trial(trial._trial_id)

    def tell(self, trial: Trial, record: JobRecord) -> None:
        """End a trial as its record says."""
        state = STATES[record.status]
        if state == TrialState.COMPLETE and record.nats is None:
            state = TrialState.FAIL
        self.study.tell(trial, record.nats if state == TrialState.COMPLETE else None, state)


def mend(journal: Path) -> None:
    """Remove the end of a line that a crash of the machine cut off."""
    if journal.exists() and (content := journal.read_bytes()) and not content.endswith(b"\n"):
        os.truncate(journal, content.rfind(b"\n") + 1)


def distribution(values: Range | list[str]) -> BaseDistribution:
    """What Optuna draws a value from."""
    if isinstance(values, list):
        return CategoricalDistribution(values)
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), values.log, int(values.step or 1))
    return FloatDistribution(values.low, values.high, values.log, values.step)
