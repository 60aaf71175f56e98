"""CFlow: conditional normalising flows over backbone features."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoad.algorithms._base import Detector, Footprint, Inputs, Kind, Needs, Prediction, Progress, Runtime, Shapes
from autoad.algorithms._maps import enlarge, smooth_prediction
from autoad.algorithms._memory import SCRATCH, feature_bytes, finishing_bytes, training_bytes, weight_bytes
from autoad.algorithms._values import BUNDLED_BACKBONE, check_stages, fitted, require
from autoad.algorithms.optimizers import Adam
from autoad.errors import TrialError

__all__ = ["CFlow", "CFlowConfig"]

# Neighbouring fibers of a fine stage are nearly the same, so that a pass over all of them is long and teaches little
# more than a part of it. In parts of this size an epoch stays short whatever the number of pictures.
_EPOCH_FIBERS = 65_536
_CHUNK_FIBERS = 4096


@dataclasses.dataclass(frozen=True)
class CFlowConfig:
    """Hyperparameters of :class:`CFlow`.

    Attributes:
        backbone: timm name of the frozen backbone.
        image_size: side of the square to which pictures are resized, in pixels.
        stages: backbone stages, each with a flow of its own.
        coupling_blocks: affine coupling blocks of each flow.
        condition_vector: length of the positional code, a multiple of 4.
        clamp_alpha: bound of a block's log scale.
        lr: Adam's learning rate.
        fiber_batch_size: fibers (feature vectors of one place) in a training step.
        epochs: ceiling of training; each epoch visits at most 65,536 fibers of each stage, going on where the last
            one stopped until all were seen.
    """

    backbone: str = BUNDLED_BACKBONE
    image_size: int = 256
    stages: tuple[int, ...] = (2, 3, 4)
    coupling_blocks: int = 8
    condition_vector: int = 128
    clamp_alpha: float = 1.9
    lr: float = 5e-4
    fiber_batch_size: int = 256
    epochs: int = 50

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", check_stages("stages", self.stages))
        for name, least in (("image_size", 32), ("coupling_blocks", 1), ("fiber_batch_size", 1), ("epochs", 1)):
            value = getattr(self, name)
            require(type(value) is int and value >= least, name, f"a whole number, {least} or more,", value)
        length = self.condition_vector
        require(
            type(length) is int and length >= 4 and length % 4 == 0,
            "condition_vector",
            "a positive multiple of 4",
            length,
        )
        require(0 < self.clamp_alpha < math.inf, "clamp_alpha", "positive", self.clamp_alpha)
        require(0 < self.lr < math.inf, "lr", "positive", self.lr)


class CFlow(Detector):
    """CFLOW-AD (Gudovskiy, Ishizaka, Kozuka: CFLOW-AD: Real-Time Unsupervised Anomaly Detection with Localization via
    Conditional Normalizing Flows, WACV 2022).

    A fiber is the feature vector ``x`` of one place of a stage's map. For each stage a flow ``z = g(x | c)`` of affine
    coupling blocks learns the density of normal fibers given a code ``c`` of their place, by minimising
    ``-log sigmoid(log p(x | c) / C)`` with ``log p = log N(z; 0, I) + log |det dz/dx|`` and C channels.

    A place's likelihood, per channel, is divided by the largest one of the training set and brought to the size of
    the picture; stages are added. The paper's anomaly map is ``max - sum``. Here it is ``-log(sum / stages)``: the same
    order, but places that are all most unlikely do not tie by rounding. A picture's score is its map's maximum.

    Differences from the authors' code and anomalib:

    - The maximum is the training set's, kept with the flow, where they take that of the batch being scored (which
      makes a picture's score depend on its company).
    - Each channel is standardised by its mean and deviation over normal fibers before it enters the flow. A bounded
      coupling block changes the scale only slowly: without this the first epochs go into finding it.
    - A step takes the authors' 256 fibers at a learning rate to match; anomalib's 64 at 1e-4 take three times as long
      to learn as much. An epoch is a bounded part of the fibers, so that many pictures or a small stride do not make
      it too long to be stopped in time.
    """

    name = "cflow"
    kind: ClassVar[Kind] = "segmentation"
    iterative = True
    paper = "Gudovskiy et al., CFLOW-AD: Real-Time Unsupervised Anomaly Detection with Localization, 2022"
    Config = CFlowConfig
    config: CFlowConfig

    def __init__(self, config: Any = None, *, seed: int = 0, runtime: Runtime | None = None) -> None:
        super().__init__(config, seed=seed, runtime=runtime)
        self._flows: dict[int, _Flow] = {}

    @property
    def needs(self) -> Needs:
        """Features of the configured stages."""
        size = self.config.image_size
        return Needs((size, size), self.config.backbone, self.config.stages)

    def fit(self, train: Inputs) -> Iterator[Progress]:
        """Train the flows, stage after stage within an epoch.

        Raises:
            TrialError: a stage has a single channel, or the loss is no longer finite.
        """
        generator = torch.Generator().manual_seed(self.seed)
        self._flows = {}
        trainings = []
        for stage in self.config.stages:
            flow = self._flow(train.features[stage].shape[1])
            flow.initialise(train.features[stage], generator)
            self._flows[stage] = flow.to(self.runtime.device)
            trainings.append(_Training(flow, train.features[stage], self.config, generator))
        for epoch in range(1, self.config.epochs + 1):
            loss = sum(training.epoch(self.runtime) for training in trainings) / len(trainings)
            if not math.isfinite(loss):
                raise TrialError(f"cflow's loss became {loss} in epoch {epoch}: lower lr (it is {self.config.lr})")
            yield Progress(epoch, self.config.epochs, loss)

    @torch.no_grad()
    def measure(self, batch: Inputs, configs: Sequence[CFlowConfig]) -> tuple[list[Tensor], tuple[int, int]]:
        """Likelihood ratios ``[N, h, w]`` by stage, float64, and the pictures' size.

        Pictures are taken one by one, so that not even rounding depends on their company.
        """
        parts = [self._ratios(picture) for picture in batch.batches(1)]
        return [torch.cat(stage) for stage in zip(*parts, strict=True)], batch.image_size

    @torch.no_grad()
    def finish(
        self, measured: tuple[list[Tensor], tuple[int, int]], config: CFlowConfig, *, maps: bool = True
    ) -> Prediction:
        """Add up the stages; the score is the map's largest value."""
        stages, size = measured

        def render(here: slice) -> Tensor:
            total = torch.stack([enlarge(ratios[here], size, 0.0) for ratios in stages]).sum(0)
            return -torch.log(total / len(stages)).float()

        return smooth_prediction(len(stages[0]), render, maps=maps)

    def _ratios(self, picture: Inputs) -> list[Tensor]:
        ratios = []
        for stage, flow in fitted(self._flows or None, self.name).items():
            features = picture.features[stage]
            height, width = features.shape[-2:]
            codes, index = position_codes(height, width, self.config.condition_vector)
            with self.runtime.autocast():
                fibers = _fibers(features).to(self.runtime.device)
                log_p = flow(fibers, index.to(fibers.device), codes.to(fibers.device))
            ratio = _bounded(log_p.double() - flow.log_p_max).exp()
            ratios.append(ratio.view(1, height, width))
        return ratios

    def footprint(self, train: int, scored: int, shapes: Shapes) -> Footprint:
        """See the base class."""
        training, weights, scoring = 0, 0, 0
        for height, width, channels in shapes.values():
            with torch.device("meta"):
                flow = self._flow(channels)
                fibers = torch.empty(min(self.config.fiber_batch_size, train * height * width), channels)
                index = torch.empty(len(fibers), 2, dtype=torch.int64)
                codes = torch.empty(height + width, self.config.condition_vector)
            step = partial(flow, fibers, index, codes)
            training += training_bytes((flow,), step, self.runtime, moments=2)
            weights += weight_bytes(flow)
            # A chunk of fibers, and a shuffled list of all.
            training += 4 * max(_CHUNK_FIBERS, len(fibers)) * channels + 2 * 8 * train * height * width
            hidden = 2 * (flow.kept + self.config.condition_vector)
            scoring = max(scoring, 4 * height * width * (3 * hidden + 6 * channels))
        statistics = min(train, 16) * 2 * max(feature_bytes({stage: shape}, 8) for stage, shape in shapes.items())
        finishing = finishing_bytes(scored, self.needs.image_size, images=len(shapes) + 3, width=8)
        return Footprint(
            fit=SCRATCH + max(training, weights + statistics),
            predict=SCRATCH + weights + max(scoring, finishing),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Weights of each stage's flow, with the training set's statistics."""
        return {
            f"stage{stage}.{name}": tensor.detach().to("cpu", copy=True).contiguous()
            for stage, flow in fitted(self._flows or None, self.name).items()
            for name, tensor in flow.state_dict().items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Rebuild the flows; their width is that of the tensors."""
        self._flows = {}
        for stage in self.config.stages:
            prefix = f"stage{stage}."
            state = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            flow = self._flow(len(state["mean"]))
            flow.load_state_dict(state)
            self._flows[stage] = flow.to(self.runtime.device)

    def _flow(self, channels: int) -> _Flow:
        if channels < 2:
            raise TrialError(f"each stage must have at least 2 channels to couple but got {channels}")
        config = self.config
        return _Flow(channels, config.condition_vector, config.coupling_blocks, config.clamp_alpha)


class _Flow(nn.Module):
    """A conditional flow of fibers ``[B, C]``; the weights of all blocks lie in one tensor each.

    A block keeps the first half ``x1`` of the channels and transforms the second, ``x2 <- x2 exp(s) + t``, with
    ``(s, t)`` from a two-layer network of ``x1`` and the condition, ``s`` softly bounded by ``clamp``. Then comes a
    learnt affine map of each channel and a fixed permutation.
    """

    mean: Tensor
    std: Tensor
    log_p_max: Tensor
    permutation: Tensor

    def __init__(self, channels: int, condition: int, blocks: int, clamp: float) -> None:
        super().__init__()
        self.kept = channels - channels // 2
        self.changed = channels // 2
        self.blocks = blocks
        self.clamp = clamp
        hidden = 2 * (self.kept + condition)
        self.w_x = nn.Parameter(torch.empty(blocks, self.kept, hidden))
        self.w_condition = nn.Parameter(torch.empty(condition, blocks * hidden))
        self.b_hidden = nn.Parameter(torch.empty(blocks * hidden))
        self.w_out = nn.Parameter(torch.empty(blocks, hidden, 2 * self.changed))
        self.b_out = nn.Parameter(torch.empty(blocks, 2 * self.changed))
        # 0.1 softplus(scale / 2) / 0.5 = 1: a block starts as the identity but for its coupling
        self.scale = nn.Parameter(torch.full((blocks, channels), 2.0 * math.log(math.expm1(5.0))))
        self.offset = nn.Parameter(torch.zeros(blocks, channels))
        self.register_buffer("permutation", torch.zeros(blocks, channels, dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("log_p_max", torch.zeros(()))

    @torch.no_grad()
    def initialise(self, features: Tensor, generator: torch.Generator) -> None:
        """Draw weights and permutations, and take the channels' statistics from normal features ``[N, C, h, w]``."""
        fan_in = self.w_x.shape[1] + self.w_condition.shape[0]
        for weight in (self.w_x, self.w_condition, self.b_hidden):
            weight.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
        fan_in = self.w_out.shape[1]
        for weight in (self.w_out, self.b_out):
            weight.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
        for permutation in self.permutation:
            permutation.copy_(torch.randperm(len(permutation), generator=generator))
        mean, square = (
            torch.zeros_like(self.mean, dtype=torch.float64),
            torch.zeros_like(self.mean, dtype=torch.float64),
        )
        for chunk in torch.split(features, 16):
            fibers = _fibers(chunk).double()
            mean += fibers.mean(0) * (len(chunk) / len(features))
            square += fibers.square().mean(0) * (len(chunk) / len(features))
        deviation = (square - mean.square()).clamp(min=0.0).sqrt()
        self.mean.copy_(mean)
        # A channel that hardly varies over normal pictures must not decide alone, nor overflow.
        self.std.copy_(deviation.clamp(min=max(1e-2 * float(deviation.mean()), 1e-3)))

    def forward(self, fibers: Tensor, index: Tensor, codes: Tensor) -> Tensor:
        """Log-likelihood per channel ``[B]`` of standardised fibers (that of raw ones differs by a constant).

        Args:
            fibers: ``[B, C]``, of any floating type.
            index: ``[B, 2]`` the two rows of ``codes`` whose sum is a fiber's condition.
            codes: ``[h + w, condition]``; see :func:`position_codes`.
        """
        z, log_det = self.transform((fibers.float() - self.mean) / self.std, index, codes)
        channels = z.shape[1]
        return (log_det - 0.5 * z.square().sum(1)) / channels - 0.5 * math.log(2.0 * math.pi)

    def transform(self, x: Tensor, index: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """``z`` ``[B, C]`` of standardised fibers ``x`` and ``log |det dz/dx|`` ``[B]``."""
        # The condition is a sum of a column's and a row's code, and so is its share of the hidden layer: a matrix
        # product for h + w codes, and two look-ups a fiber, in place of one for every fiber.
        table = torch.addmm(0.5 * self.b_hidden, codes, self.w_condition).to(x.dtype)
        conditions = table.view(len(codes), self.blocks, -1).transpose(0, 1).contiguous()
        scale = 0.1 * functional.softplus(self.scale, beta=0.5)
        log_det = scale.log().sum()
        layers = (conditions, self.w_x, self.w_out, self.b_out, scale, self.offset)
        inverses = self.permutation.argsort(1)
        for block, (condition, w_x, w_out, b_out, gain, offset) in enumerate(
            zip(*(tensor.unbind() for tensor in layers), strict=True)
        ):
            x1, x2 = x[:, : self.kept], x[:, self.kept :]
            shared = functional.embedding_bag(index, condition, mode="sum")
            hidden = torch.addmm(shared, x1, w_x).relu_()
            out = 0.1 * torch.addmm(b_out, hidden, w_out).to(x.dtype)
            s = self.clamp * torch.tanh(out[:, : self.changed])
            x2 = torch.addcmul(out[:, self.changed :], x2, s.exp())
            x = torch.addcmul(offset, torch.cat([x1, x2], 1), gain)
            x = _permute(x, self.permutation[block], inverses[block])
            log_det = log_det + s.sum(1)
        return x, log_det


class _Permute(torch.autograd.Function):
    # index_select's own gradient adds column by column, which takes longer than the block's matrix products.
    @staticmethod
    def forward(ctx: Any, x: Tensor, permutation: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return x.index_select(1, permutation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(1, ctx.inverse), None, None


def _permute(x: Tensor, permutation: Tensor, inverse: Tensor) -> Tensor:
    permuted: Tensor = _Permute.apply(x, permutation, inverse)
    return permuted


def _bounded(log_ratio: Tensor) -> Tensor:
    """Log ratios of likelihoods, float64, such that their exponentials are in (0, 1].

    A place likelier than the training set's likeliest is no more normal than it. Far below, where the exponential
    would be zero and all places alike, order is kept on a logarithmic scale.
    """
    beyond = (-600.0 - log_ratio).clamp(min=0.0)
    return log_ratio.clamp(-600.0, 0.0) - beyond.log1p()


class _Training:
    """What training a stage's flow keeps from one epoch to the next."""

    def __init__(self, flow: _Flow, features: Tensor, config: CFlowConfig, generator: torch.Generator) -> None:
        self._flow = flow
        self._fibers = _fibers(features)
        self._batch = config.fiber_batch_size
        self._optimizer = Adam(flow.parameters(), config.lr)
        self._parts = _parts(len(self._fibers), generator)
        height, width = features.shape[-2:]
        device = flow.mean.device
        codes, index = position_codes(height, width, config.condition_vector)
        self._codes, self._index = codes.to(device), index.to(device)

    def epoch(self, runtime: Runtime) -> float:
        """Train on the next part of the fibers; the mean loss."""
        device = self._flow.mean.device
        part = next(self._parts)
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        peak = torch.full((), -math.inf, device=device)
        for chunk in torch.split(part, self._batch * max(1, _CHUNK_FIBERS // self._batch)):
            fibers = self._fibers[chunk].to(device)
            index = self._index[(chunk % len(self._index)).to(device)]
            for x, places in zip(torch.split(fibers, self._batch), torch.split(index, self._batch), strict=True):
                with runtime.autocast():
                    log_p = self._flow(x, places, self._codes)
                loss = -functional.logsigmoid(log_p).mean()
                self._optimizer.zero_grad()
                torch.autograd.backward(loss)
                self._optimizer.step()
                loss_sum += loss.detach() * len(x)
                peak = torch.maximum(peak, log_p.detach().amax())
            if not math.isfinite(loss_sum.item()):
                break
        self._flow.log_p_max.copy_(peak)
        return loss_sum.item() / len(part)


def _fibers(features: Tensor) -> Tensor:
    """``[N, C, h, w]`` as ``[N h w, C]``, without a copy where memory is channels-last."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def _parts(total: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless shuffles of ``range(total)``, each in equal parts of at most ``_EPOCH_FIBERS``."""
    while True:
        yield from torch.randperm(total, generator=generator).tensor_split(-(-total // _EPOCH_FIBERS))


def position_codes(height: int, width: int, dim: int) -> tuple[Tensor, Tensor]:
    """The 2-D sinusoidal code of every place of a map, as a column's plus a row's.

    Half of the code holds sines and cosines of the column, the other half of the row, at ``dim / 4`` frequencies from
    1 towards 1/10000.

    Returns:
        ``codes`` ``[width + height, dim]`` (columns first; the other half is zero) and ``index``
        ``[height * width, 2]``: the code of place ``i`` in reading order is ``codes[index[i]].sum(0)``.
    """

    def encode(length: int) -> Tensor:
        frequencies = torch.exp(torch.arange(0, dim // 2, 2) * (-math.log(10_000.0) / (dim // 2)))
        angles = torch.arange(length)[:, None] * frequencies
        return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)

    codes = torch.zeros(width + height, dim)
    codes[:width, : dim // 2] = encode(width)
    codes[width:, dim // 2 :] = encode(height)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return codes, torch.stack([columns.flatten(), width + rows.flatten()], 1)
