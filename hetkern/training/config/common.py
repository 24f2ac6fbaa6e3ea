"""The settings that every task has."""

from __future__ import annotations

from dataclasses import dataclass

from .settings import Settings, UserError, setting

SMALLEST_BPE = 258  # tokens: padding, unknown, and the bytes


@dataclass(frozen=True)
class RunConfig(Settings):
    """How to train, apart from what.

    Raises:
        UserError: a value has the wrong type or lies out of range.
    """

    data: str | None = setting(
        None, "Text file or folder to train on", shown="Python's standard library"
    )
    out: str | None = setting(None, "Folder for the run's files", shown="a fresh one under runs/")
    model: str = setting("gpt", "Kind of model: gpt")
    kernels: str = setting(
        "hetkern", "Kernels to run on: hetkern, torch, or one of hetkern's implementations by name"
    )
    preset: str | None = setting(None, "Settings by a name; flags and file win", shown="none")
    batch_size: int | str = setting(8, "Sequences a step and process; auto tries what is fastest")
    accumulate: int = setting(1, "Batches whose gradients make one step, as one large batch would")
    steps: int = setting(1500, "Optimizer steps")
    epochs: int = setting(0, "Passes over the training data, in place of steps; 0 counts steps")
    optimizer: str = setting("adamw", "adamw, adam (no decay) or sgd (with momentum)")
    learning_rate: float = setting(5e-3, "Highest learning rate, reached after the warm-up")
    min_learning_rate: float = setting(0.0, "Learning rate at the end of cosine and linear")
    schedule: str = setting("cosine", "After the warm-up: cosine, linear or constant")
    warmup: int = setting(100, "Steps over which the learning rate rises to its highest")
    beta2: float = setting(0.99, "Adam's decay of squared gradients")
    momentum: float = setting(0.9, "Momentum of sgd")
    weight_decay: float = setting(0.1, "Decay of weight matrices by adamw and sgd")
    clip: float = setting(1.0, "Largest norm of the gradient; 0 does not clip")
    precision: str = setting("float32", "float32, bf16 (autocast) or fp16 (autocast, scaled loss)")
    compile: bool = setting(False, "Let torch.compile fuse what it can")
    recompute: bool = setting(False, "Keep fewer activations, compute them again in backward")
    seed: int = setting(1, "Same seed, same bits")
    eval_every: int = setting(
        500, "Steps between validations; 0 at the end only; with epochs, each epoch has one"
    )
    patience: int = setting(
        0, "Stop after so many validations without a better loss; 0 trains to the end"
    )
    log_every: int = setting(10, "Steps between rows of metrics.jsonl")
    save_every: int = setting(0, "Steps between checkpoints; 0 saves before each validation only")
    keep: int = setting(2, "Last checkpoints to keep, beside the best")
    tensorboard: bool = setting(False, "Write TensorBoard events into the run's folder")
    device: str = setting("auto", "Where to train: auto, cpu, cuda or cuda:n")
    threads: int = setting(0, "CPU threads; 0 leaves the choice to torch")
    nproc: int | str = setting(1, "Processes, each with a part of the batch; gpu: one for each GPU")
    parallel: str = setting("ddp", "Of several processes: ddp (whole models) or fsdp (shards)")

    def check(self) -> None:
        """Refuse values that are out of range."""
        self.at_least(1, "batch_size", "accumulate", "steps", "log_every", "keep", "nproc")
        self.at_least(0, "epochs", "learning_rate", "min_learning_rate", "warmup", "weight_decay",
                      "clip", "seed", "eval_every", "patience", "save_every",
                      "threads")  # fmt: skip
        if self.seed >= 1 << 63:  # what torch's generators take
            raise UserError(f"seed must be below 2^63, got {self.seed}")
        self.one_of("optimizer", "adamw", "adam", "sgd")
        self.one_of("schedule", "cosine", "linear", "constant")
        self.one_of("precision", "float32", "bf16", "fp16")
        self.one_of("parallel", "ddp", "fsdp")
        for name, word in (("batch_size", "auto"), ("nproc", "gpu")):
            value = getattr(self, name)
            if isinstance(value, str) and value != word:
                raise UserError(f"{name} must be a whole number or {word}, got {value!r}")
        for name in ("beta2", "momentum"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.min_learning_rate > self.learning_rate:
            raise UserError(
                f"min_learning_rate {self.min_learning_rate} must not be above "
                f"learning_rate {self.learning_rate}"
            )
