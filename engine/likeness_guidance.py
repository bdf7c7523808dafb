"""Identity guidance: at every step the guessed clip is moved towards who the references show.

    x, v ─▶ x0 = x - t v ─ Locator ─▶ boxes ─▶ crops ─ reader ─▶ KL(reference || crop) ─┐
             x0 - strength * direction  ◀─ of unit size in the boxes ◀─ J^T gradient ◀──┘

Classifier guidance (Dhariwal and Nichol, arXiv 2105.05233) with a reader of identities. J is the
guess's Jacobian by x, through the forward with prompt and subjects, as in diffusion posterior
sampling (Chung et al., arXiv 2209.14687): of all that would satisfy a reader, it leaves what the
transformer can draw. The move itself is made where the velocity points (He et al., arXiv
2311.16424). A convnet is also satisfied by patterns that nobody sees; its gradient is therefore
averaged over crops with noise and jitter (SmoothGrad, arXiv 1706.03825), none is taken at the end,
when the transformer would no longer turn a pattern into a feature, and the reader itself is trained
to stand such moves (`training.readers`).

Stateless: where everybody is, is looked up anew at every step, and the noise follows from the time,
so on a CPU a run that is resumed makes the same clip (on a card the backward of a crop adds up in
any order). Who is who is found by likeness and place (`engine.matching`).

Legend: B clips, C latent channels, F latent frames, H W latents, S subjects, N crops, D detections
of a frame, V logits of a reading, X box corners (px).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from engine.crops import cut, shaken, whole_picture
from engine.detector import decode
from engine.encodings import EncodingsBatch
from engine.errors import BackendError
from engine.matching import NOBODY, assign, centres
from engine.reader import CROP, Readers, cells, divergence
from engine.sample import Move
from engine.spec import Guidance

LATEST = 0.2
"""Time after which it no longer moves: no step is left that would draw what a move only hints
at."""
DRAWS, NOISE, JITTER = 8, 1.0, 0.06
"""So many worn crops of each character; noise in latents' units, jitter as a share of a crop."""
NATS = 30.0
"""A divergence of so many nats, or the clip's largest, counts as a cosine of 1 less does: however
unlike somebody is, it is found where nobody else is left."""
SMOOTH = 0.7


# J^T of the velocity with prompt and subjects: (x, times [B], a gradient by v) to one by x.
Pullback = Callable[[Tensor, Tensor, Tensor], Tensor]


def moving(
    readers: Readers | None,
    batch: EncodingsBatch,
    guidance: Guidance,
    factor: int,
    pullback: Pullback | None = None,
) -> Move | None:
    """What moves the guesses of these requests; None where it is not asked for, or nobody is there
    to be like.

    pullback: without it, as where the transformer's blocks come and go, the gradient is used as the
    reader gives it, which is worth less.

    Raises BackendError: it is asked for, and the model brings no readers.
    """
    if guidance.identity_scale == 0 or not bool(batch.subject_mask_BS.any()):
        return None
    if readers is None:
        raise BackendError("identity_scale: this model brings nobody who reads identities")
    return LikenessGuidance(readers, batch, guidance.identity_scale, factor, pullback)


class LikenessGuidance:
    """The subjects of a batch of requests, as a reader sees them, and how clips move towards them.

    strength: root of the sum of a move's squares over the numbers in the squares that are read, in
    latents' units; of the move through the transformer a part lies outside them, a quarter at t =
    1. factor: px per cell. pullback: see `moving`.
    """

    def __init__(
        self,
        readers: Readers,
        batch: EncodingsBatch,
        strength: float,
        factor: int,
        pullback: Pullback | None = None,
    ) -> None:
        self.readers, self.strength, self.factor = readers, strength, factor
        self.pullback = pullback
        self.mask_BS = batch.subject_mask_BS.cpu()
        with _fp32(batch.refs_BSCHW.device):
            self.wanted_BSV = read_references(readers, batch.refs_BSCHW)

    def __call__(self, x0_BCFHW: Tensor, x_BCFHW: Tensor, t: float, told: float) -> Tensor:
        """The clip, moved; at the end, and where nobody is found, as it was.

        x: what the clip was guessed from. told: the time that the transformer was told.
        """
        if t < LATEST:
            return x0_BCFHW
        with _fp32(x0_BCFHW.device):
            clip_N, subject_N, frame_N, boxes_NX = self._found(x0_BCFHW)
        if not len(clip_N):
            return x0_BCFHW
        device = x0_BCFHW.device
        clip_N, subject_N, frame_N = (x.to(device) for x in (clip_N, subject_N, frame_N))
        squares_N3 = cells(boxes_NX, self.factor).to(device)
        gradient = self._gradient(x0_BCFHW, clip_N, subject_N, frame_N, squares_N3, t)
        if self.pullback is not None:
            told_B = torch.full((len(x_BCFHW),), told, dtype=torch.float64, device=device)
            with _safely():
                # The guess is x - t v.
                gradient = gradient - t * self.pullback(x_BCFHW, told_B, gradient)
        room_B = torch.zeros(len(x0_BCFHW), device=device)
        room_B = room_B.index_add(0, clip_N, _area(squares_N3, x0_BCFHW)) * x0_BCFHW.shape[1]
        size_B = (gradient.square().sum((1, 2, 3, 4)) / room_B.clamp_min(1)).sqrt()
        unit = gradient / size_B.clamp_min(1e-12)[:, None, None, None, None]
        return x0_BCFHW - self.strength * unit.to(x0_BCFHW.dtype)

    @torch.no_grad()
    def _found(self, x0_BCFHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clip, subject, latent frame and box of everybody who is found, on the CPU."""
        rows: list[Tensor] = [torch.zeros(0, 3, dtype=torch.long)]
        boxes: list[Tensor] = [torch.zeros(0, 4)]
        for clip, x0_CFHW in enumerate(x0_BCFHW):
            subjects = self.mask_BS[clip].nonzero()[:, 0]
            who_FS, boxes_FDX = self._who(x0_CFHW.float().transpose(0, 1), clip, subjects)
            frame_N, place_N = (who_FS != NOBODY).nonzero(as_tuple=True)
            owner = torch.full_like(frame_N, clip)
            rows.append(torch.stack([owner, subjects[place_N], frame_N], 1))
            boxes.append(boxes_FDX[frame_N, who_FS[frame_N, place_N]])
        clip_N, subject_N, frame_N = torch.cat(rows).unbind(1)
        return clip_N, subject_N, frame_N, torch.cat(boxes)

    def _who(self, latents_FCHW: Tensor, clip: int, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """Detection of each subject in each latent frame [F, S], NOBODY where there is none, and
        the detections' boxes [F, D, 4]; on the CPU."""
        seen = decode(self.readers.where(latents_FCHW))
        most = len(subjects) + 1
        real_FD, boxes_FDX = seen.score_NK[:, :most] > 0, seen.boxes_NKS[:, :most]
        frame_N, detection_N = real_FD.nonzero(as_tuple=True)
        if not len(frame_N) or not len(subjects):
            return torch.full((len(latents_FCHW), len(subjects)), NOBODY), boxes_FDX.cpu()
        squares_N3 = cells(boxes_FDX[frame_N, detection_N], self.factor)
        read_NV = self.readers.who(cut(latents_FCHW[frame_N], squares_N3, CROP))
        nats_FDS = torch.zeros(*real_FD.shape, len(subjects))
        for place, subject in enumerate(subjects):
            wanted_NV = self.wanted_BSV[clip, subject].expand(len(read_NV), -1)
            away_N = divergence(wanted_NV, read_NV, self.readers.config.groups)
            nats_FDS[frame_N.cpu(), detection_N.cpu(), place] = away_N.cpu()
        boxes, height = boxes_FDX.cpu(), latents_FCHW.shape[2] * self.factor
        nats_FDS /= max(NATS, float(nats_FDS.max()))
        who_FS = assign(
            -nats_FDS.double().numpy(),
            real_FD.cpu().numpy(),
            centres(boxes.double().numpy()) / height,
            SMOOTH,
        )
        return torch.from_numpy(who_FS), boxes

    def _gradient(
        self,
        x0_BCFHW: Tensor,
        clip_N: Tensor,
        subject_N: Tensor,
        frame_N: Tensor,
        squares_N3: Tensor,
        t: float,
    ) -> Tensor:
        """Of the divergences' sum over subjects, frames and worn crops; shape of x0, fp32."""
        dice = torch.Generator().manual_seed(round(t * 2**20))
        wanted_NV = self.wanted_BSV[clip_N, subject_N]
        x0 = x0_BCFHW.detach().float().clone().requires_grad_()
        gradient = torch.zeros_like(x0)
        for _ in range(DRAWS):
            # The same wear for everybody: nothing may depend on who else is in the batch.
            where_N3 = _worn(squares_N3, dice)
            noise = NOISE * torch.randn(1, x0.shape[1], CROP, CROP, generator=dice)
            with torch.enable_grad(), _fp32(x0.device), _safely():
                crops = cut(x0[clip_N, :, frame_N], where_N3, CROP) + noise.to(x0.device)
                read_NV = self.readers.who(crops)
                away = divergence(wanted_NV, read_NV, self.readers.config.groups).sum()
                gradient += torch.autograd.grad(away, x0)[0]
        return gradient


@torch.no_grad()
def read_references(readers: Readers, refs_BSCHW: Tensor) -> Tensor:
    """What the reader sees in whole reference pictures' latents, [B, S, V]: the mean over DRAWS
    squares, which reads two factors in a hundred more right than one does."""
    refs_NCHW = refs_BSCHW.flatten(0, 1).float()
    dice = torch.Generator().manual_seed(0)
    whole_N3 = whole_picture(refs_NCHW)
    crops = (cut(refs_NCHW, _worn(whole_N3, dice), CROP) for _ in range(DRAWS))
    read_NV = torch.stack([readers.who(each) for each in crops]).mean(0)
    return read_NV.unflatten(0, refs_BSCHW.shape[:2])


def _worn(squares_N3: Tensor, dice: torch.Generator) -> Tensor:
    """Squares moved and scaled by up to JITTER of their sides, all of them alike."""
    noise_13 = torch.rand(1, 3, generator=dice) * 2 - 1
    return shaken(squares_N3, noise_13.to(squares_N3.device), JITTER)


def _area(squares_N3: Tensor, x0_BCFHW: Tensor) -> Tensor:
    """Cells of each square that lie in the frame, [N]."""
    sides = []
    for axis, length in ((0, x0_BCFHW.shape[-1]), (1, x0_BCFHW.shape[-2])):
        centre, half = squares_N3[:, axis], squares_N3[:, 2] / 2
        sides.append((centre + half).clamp(0, length) - (centre - half).clamp(0, length))
    return sides[0] * sides[1]


@cache
def _has_amx() -> bool:
    known = Path("/proc/cpuinfo")
    return known.exists() and "amx_tile" in known.read_text()


def _safely() -> AbstractContextManager[None]:
    """oneDNN's backward of a few small crops has crashed on CPUs with AMX (torch 2.13); there it
    goes without, which costs twice the time, and in bf16 many times that."""
    if not _has_amx():
        return nullcontext()
    return torch.backends.mkldnn.flags(enabled=False)  # type: ignore[no-any-return]


def _fp32(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, enabled=False)
