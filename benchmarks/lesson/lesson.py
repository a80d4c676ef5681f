"""The lesson's ladder: its systems, the experiment that trains each, and the figures that the lesson prints.

Losses are in nats per character, one per epoch, unless `unit` says otherwise. fast.ai's training figures (row 2) are
running means over some fifty steps at the end of the epoch; Keras's are means over the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

STEPS = "last steps"  # for Entry.split: the mean over the steps since the last log, from csv/metrics.csv


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    `split` is the loss of ours that is compared with the lesson's: "val", "train" or `STEPS`. `figures` are the
    lesson's; `lesson` describes them in words if they are not a list of numbers. `comparable` says whether we should
    reach the last of them, or `target`. `next`, `positions` and `greedy` are prompts with the lesson's answers from
    `get_next`, `get_nexts` and `get_next_n`.
    """

    row: str
    system: str
    experiment: str
    split: str
    overrides: tuple[str, ...] = ()
    figures: tuple[float, ...] = ()
    lesson: str = ""
    target: float | None = None
    comparable: bool = True
    leaky: bool = False
    unit: str = "nats/char"
    scale: float = 1.0  # from nats per character to `unit`
    factor: float = 1.0  # for our figures, if the lesson does not divide by the number of windows
    every: int = 1  # show only every n-th of a long list of figures
    epochs: int | None = None  # read only the first epochs of a longer run, and the weights from `checkpoint`
    checkpoint: str = "best.ckpt"
    long: bool = False
    next: dict[str, str] = field(default_factory=dict)
    positions: dict[str, str] = field(default_factory=dict)
    greedy: dict[str, str] = field(default_factory=dict)
    by_position: int = 0  # measure the loss at each position of windows of this length
    writes: bool = False  # count quotes and sections in a sample
    remark: str = ""

    @property
    def compared(self) -> str:
        """Which loss is compared: "train" or "val"."""
        return "train" if self.split == STEPS else self.split

    @property
    def last(self) -> float | None:
        """The lesson's last figure."""
        return self.target if self.target is not None else self.figures[-1] if self.figures else None


EIGHT = {"for thos": "e", "part of ": "t", "queens a": "n"}
SGDR_63 = ("trainer.max_epochs=63",)

LADDER = (
    Entry(
        "1",
        "three characters → fourth, added form (Keras functional)",
        "keras_char3",
        "train",
        lesson="2.166 after 4 epochs",
        target=2.166,
        next={"phi": "l", " th": "e", " an": "d"},
    ),
    Entry(
        "2",
        "three characters → fourth, PyTorch form (Char3Model)",
        "char3",
        STEPS,
        figures=(2.093, 1.841),
        next={"y. ": "T", "ppl": "e", " th": "e", "and": " "},
        remark="both are means over the last steps of each epoch (the lesson's smoothed loss)",
    ),
    Entry(
        "3",
        "eight characters → next, added form (Keras functional)",
        "keras_loop",
        "train",
        lesson="≈ 1.8 after 12 epochs",
        target=1.8,
        next=EIGHT,
    ),
    Entry(
        "4",
        "the same through the built-in layer (Keras SimpleRNN)",
        "keras_rnn",
        "train",
        lesson="≈ 1.8 after 8 epochs",
        target=1.8,
        next={"this is ": "t", "part of ": "t", "queens a": "n"},
    ),
    Entry("5", "CharLoopModel", "char_loop", "val", figures=(1.993, 1.751), leaky=True),
    Entry("6", "CharLoopConcatModel", "char_loop_concat", "val", figures=(1.785, 1.699), leaky=True, next=EIGHT),
    Entry(
        "7",
        "CharRnn: nn.RNN, last output only",
        "char_rnn",
        "val",
        figures=(1.843, 1.674, 1.592, 1.549, 1.510, 1.504),
        leaky=True,
        next={"for thos": "e"},
        greedy={"for thos": "e the same the same the same the same th"},
    ),
    Entry(
        "8", "CharSeqRnn: an output at every step", "char_seq_rnn", "val", figures=(2.403, 2.199, 2.088, 2.016, 2.001)
    ),
    Entry(
        "9",
        "the same in Keras (return_sequences, TimeDistributed)",
        "keras_seq_rnn",
        "train",
        lesson="loss falls with position",
        comparable=False,
        positions={" this is": "then ss "},
        by_position=8,
    ),
    Entry(
        "9, functional",
        "the same unrolled, fed by a vector of zeros",
        "keras_seq_loop",
        "train",
        lesson="loss falls with position",
        comparable=False,
        positions={" this is": "thet sn ", " part of": "tort of "},
        by_position=8,
        remark="one embedding; the lesson has one for each position, already trained in row 3",
    ),
    Entry(
        "10",
        "identity initialisation (IRNN)",
        "irnn",
        "val",
        figures=(2.211, 2.033, 1.964, 1.918, 1.857, 1.849, 1.843, 1.838),
    ),
    Entry(
        "11",
        "row 9 with one-hot inputs, no embedding",
        "keras_one_hot",
        "train",
        lesson="the same answer as row 9",
        comparable=False,
        positions={" this is": "then ss "},
    ),
    Entry(
        "12",
        "stateful RNN (CharSeqStatefulRnn)",
        "stateful_rnn",
        "val",
        figures=(1.812, 1.662, 1.578, 1.545, 1.504, 1.494, 1.493, 1.486),
    ),
    Entry(
        "13",
        "stateful RNN from an explicit cell and loop",
        "stateful_rnn_cell",
        "val",
        figures=(1.797, 1.653, 1.581, 1.542),
    ),
    Entry(
        "14",
        "stateful GRU",
        "stateful_gru",
        "val",
        figures=(1.678, 1.527, 1.468, 1.438, 1.418, 1.405, 1.369, 1.370, 1.370),
    ),
    Entry(
        "14, cell",
        "stateful GRU from an explicit cell",
        "stateful_gru_cell",
        "val",
        figures=(1.678, 1.527, 1.468, 1.438, 1.418, 1.405, 1.369, 1.370, 1.370),
    ),
    Entry("15", "stateful LSTM, 2 × 512, dropout 0.5", "stateful_lstm", "val", figures=(1.640, 1.582)),
    Entry(
        "16",
        "row 15 with SGDR, 15 epochs",
        "stateful_lstm_sgdr",
        "val",
        figures=(
            *(1.447, 1.466, 1.399, 1.483, 1.432, 1.380, 1.358),
            *(1.472, 1.461, 1.428, 1.390, 1.365, 1.342, 1.329, 1.315),
        ),
        epochs=15,
        checkpoint="cycle-4.ckpt",
        next={"for thos": "e"},
        remark="the lesson continued from the weights of row 15, this run starts from new weights",
    ),
    Entry(
        "16, long",
        "row 15 with SGDR, 63 epochs",
        "stateful_lstm_sgdr",
        "val",
        SGDR_63,
        lesson="1.2524 after 63 epochs",
        target=1.2524,
        every=7,
        long=True,
        remark="the lesson continued from the weights of rows 15 and 16, this run starts from new weights",
    ),
    Entry(
        "17",
        "stateful LSTM with batch normalisation after the embedding (Keras)",
        "keras_stateful_lstm",
        "train",
        lesson="≈ 1.69 after 12 epochs",
        target=1.69,
        remark="better because our streams have no gaps, while each row of the lesson's batches jumps 512 characters "
        "ahead from batch to batch; sigmoid gates as in Keras 3 (Keras 1: hard sigmoid)",
    ),
    Entry(
        "18",
        "the deep Nietzsche writer (Keras)",
        "writer",
        "train",
        lesson="closes quotes and opens chapters after about 12 epochs",
        comparable=False,
        writes=True,
        remark="sigmoid gates as in Keras 3 (Keras 1: hard sigmoid)",
    ),
    Entry(
        "19",
        "RNN from scratch by scan (Theano)",
        "scan_relu",
        STEPS,
        figures=(
            *(25.158, 21.460, 20.904, 19.906, 18.812, 19.281, 19.061, 18.505, 17.926, 18.193),
            *(17.430, 17.620, 18.409, 17.324, 16.794, 17.751, 17.322, 17.197, 16.828, 16.665),
            *(16.520, 16.429, 16.676, 16.197, 16.835, 16.559, 16.144, 16.295, 16.285, 16.415),
            *(16.727, 16.439, 16.713, 16.358, 15.976, 16.674, 15.975, 16.386, 16.063, 16.259),
            *(15.349, 15.734, 15.723, 16.061, 15.973, 15.910, 15.658, 16.064, 15.978, 16.110),
            *(15.217, 15.606, 15.022, 14.843, 15.621, 15.380, 14.701, 15.558, 15.103, 15.032),
            *(14.977, 15.397, 15.325, 15.122, 14.672, 14.806, 14.297, 14.682, 15.249, 14.802),
            *(15.153, 14.698, 14.446, 14.519, 14.449),
        ),
        unit="nats/8 chars",
        scale=8.0,
        every=5,
        positions={"then? Is": "he   Tn "},
        remark="each figure is the mean of 1,000 sequences",
    ),
    Entry(
        "20",
        "char-RNN with an explicit loop (Theano)",
        "scan_tanh",
        "train",
        figures=(97.585, 88.023, 82.849, 78.878, 75.926, 73.195, 71.256, 68.790, 67.169, 65.678),
        comparable=False,
        unit="nats/25 chars + penalty",
        scale=25.0,
        factor=39 / 40,
        remark="another text: the lesson uses The Four Million, with 98 symbols; as in the lesson, "
        "the sum over the 39 windows of a pass is divided by 40",
    ),
)
