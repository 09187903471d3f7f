"""Muon: momentum whose matrices are orthogonalised before they are applied (Jordan 2024,
kellerjordan.github.io/posts/muon; on a diffusion U-Net: arXiv 2510.19376)."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from diffusion.optimizers.adamw import AdamW

# a, b, c of the quintic a s + b s^3 + c s^5: the steepest at 0 that keeps singular values near 1 after five rounds.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrices: Tensor, rounds: int = 5) -> Tensor:
    """Moves the singular values of each matrix to about 1, into [0.68, 1.21], and keeps its singular vectors, by
    Newton-Schulz.

    One round is `X <- (a I + b X X^T + c (X X^T)^2) X`. All rounds' factors are polynomials of the same symmetric
    matrix, so they are multiplied in its own, smaller size, and X is multiplied once.

    Args:
        matrices: (B, m, n). Singular values below 0.003 of a matrix's Frobenius norm do not get all the way.
        rounds: of the iteration.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalized(matrices.mT, rounds).mT
    a, b, c = _QUINTIC
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # singular values at most 1
    gram = x @ x.mT
    identity = torch.eye(gram.shape[1], dtype=x.dtype, device=x.device)
    product = identity.expand_as(gram)
    for _ in range(rounds):
        factor = a * identity + torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        product = factor @ product
        gram = factor @ gram @ factor
    return product @ x


class MuonAdamW(torch.optim.Optimizer):
    """Muon for matrices and AdamW for the rest, in one optimizer with a parameter group for each.

    A matrix W (m, n) with gradient G moves by
    `M <- momentum M + (1 - momentum) G; W <- W - lr sqrt(max(1, m / n)) orthogonalized(momentum M + (1 - momentum) G)`.

    Args:
        matrices: parameters of two or more dimensions; a convolution's kernel counts as (c_out, c_in h w).
        rest: all others.
        matrix_lr: learning rate of the matrices.
        lr: of the rest.
        momentum: of the matrices.
        betas: decay rates of AdamW's two moments.
        weight_decay: decoupled, applied to all weights.
        fused: AdamW in one kernel.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        rest: Iterable[nn.Parameter],
        matrix_lr: float,
        lr: float,
        momentum: float,
        betas: tuple[float, float],
        weight_decay: float,
        fused: bool,
    ) -> None:
        groups: list[dict[str, Any]] = [
            {"params": list(rest), "lr": lr, "betas": betas, "fused": fused},
            {"params": list(matrices), "lr": matrix_lr, "momentum": momentum},
        ]
        super().__init__(groups, {"weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all groups; `closure` computes loss and gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if "momentum" in group:
                self._muon(group)
            else:
                self._adamw(group)
        return loss

    def _adamw(self, group: dict[str, Any]) -> None:
        parameters: list[Tensor] = [p for p in group["params"] if p.grad is not None]
        for p in parameters:
            if not self.state[p]:
                moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                # A fused step counts on the parameters' device, any other on the CPU.
                device = p.device if group["fused"] else "cpu"
                self.state[p].update(step=torch.zeros((), device=device), **moments)
        states = [self.state[p] for p in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            max_exp_avg_sqs=[],
            state_steps=[state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )

    def _muon(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, int], list[Tensor]] = {}
        for p in group["params"]:
            if p.grad is not None:
                by_shape.setdefault((p.shape[0], p[0].numel()), []).append(p)
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
        for (m, n), parameters in by_shape.items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            averages: list[Tensor] = [self.state[p]["momentum"] for p in parameters]
            torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, averages, group["momentum"])  # as Nesterov's momentum looks
            updates = orthogonalized(torch.stack([g.flatten(1) for g in ahead]))
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            length = group["lr"] * max(1, m / n) ** 0.5
            if isinstance(length, Tensor):  # which torch takes for no `alpha`
                updates = updates * length
                length = 1.0
            for p, update in zip(parameters, updates, strict=True):
                p.sub_(update.view(p.shape), alpha=length)


class Muon:
    """Muon on the hidden matrices of a network, AdamW on the rest; see `MuonAdamW`.

    Hidden matrices are the weights of two or more dimensions, convolutions' among them, but for embeddings of labels
    and the layers that the network names in `ends`.

    Args:
        lr: peak learning rate of AdamW.
        matrix_lr: peak learning rate of Muon; both follow the same course.
        momentum: of Muon.
        betas: decay rates of AdamW's two moments.
        weight_decay: decoupled, applied to all weights.
    """

    def __init__(
        self,
        lr: float = 2e-3,
        matrix_lr: float = 0.01,
        momentum: float = 0.95,
        betas: Sequence[float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        if not 0 < matrix_lr < math.inf:
            raise ValueError(f"matrix_lr must be positive, got {matrix_lr}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        self.rest = AdamW(lr, betas, weight_decay)
        self.matrix_lr, self.momentum = matrix_lr, momentum

    def __call__(self, network: nn.Module, fused: bool) -> torch.optim.Optimizer:
        """The optimizer of a network's weights, the group of the rest first; `fused` AdamW in one kernel.

        Raises:
            ValueError: the network does not say which layers are its ends.
        """
        ends: Sequence[str] | None = getattr(network, "ends", None)
        if ends is None:
            raise ValueError(
                f"Muon has to know which layers of a {type(network).__name__} read x and write the output: name them "
                f"in its attribute `ends`"
            )
        outer = [network.get_submodule(name) for name in ends]
        outer += [module for module in network.modules() if isinstance(module, nn.Embedding)]
        outside = {id(p) for module in outer for p in module.parameters()}
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for p in network.parameters():
            if p.requires_grad:
                (matrices if p.ndim >= 2 and id(p) not in outside else rest).append(p)
        return MuonAdamW(
            matrices, rest, self.matrix_lr, self.rest.lr, self.momentum, self.rest.betas, self.rest.weight_decay, fused
        )
