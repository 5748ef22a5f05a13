"""JAX: jaxopt's ``root_vjp``, compiled as a whole, for the networks of dense layers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._peers.cells import Case
from benchmarks._peers.method import STEP_SIZE, Gradient, NotServed, Setting


def hypergradient(case: Case, setting: Setting) -> Gradient:
    if not isinstance(case.model, nn.Sequential) or not all(
        isinstance(layer, (nn.Linear, nn.Tanh)) for layer in case.model
    ):
        raise NotServed("written in JAX for dense networks only")
    # Read when JAX starts its first computation: one thread, as the others have.
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    )
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jaxopt.implicit_diff import root_vjp
    from jaxopt.linear_solve import solve_cg

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)

    def arrays(tensors: Sequence[Tensor]) -> list[Any]:
        return [jnp.asarray(t.detach().numpy()) for t in tensors]

    def mlp(layers: list[Any], x: Any, activation: Any) -> Any:
        for i in range(0, len(layers), 2):
            x = x @ layers[i].T + layers[i + 1]
            if i + 2 < len(layers):
                x = activation(x)
        return x

    def losses(theta: list[Any], batch: Any) -> Any:
        x, y = batch
        logarithms = jax.nn.log_softmax(mlp(theta, x, jnp.tanh))
        return -jnp.take_along_axis(logarithms, y[:, None], 1)[:, 0]

    def inner(theta: list[Any], phi: list[Any], batch: Any) -> Any:
        each = losses(theta, batch)
        seen = jax.lax.stop_gradient(each)[:, None]
        weights = 2.0 * jax.nn.sigmoid(mlp(phi, seen, jax.nn.relu)[:, 0])
        return (weights * each).mean()

    def series(matvec: Any, b: Any) -> Any:
        term = total = b
        for _ in range(setting.num):
            product = matvec(term)
            term = jax.tree.map(lambda t, p: t - STEP_SIZE * p, term, product)
            total = jax.tree.map(jnp.add, total, term)
        return jax.tree.map(lambda t: STEP_SIZE * t, total)

    def conjugate_gradients(matvec: Any, b: Any) -> Any:
        return solve_cg(matvec, b, ridge=setting.damping(case), maxiter=setting.num, tol=0.0)

    solve = series if setting.kind == "series" else conjugate_gradients

    @jax.jit
    def compiled(theta: Any, phi: Any, batch: Any, dev_batch: Any) -> Any:
        v = jax.grad(lambda theta: losses(theta, dev_batch).mean())(theta)
        first = jax.grad(inner)
        return root_vjp(lambda t, p: first(t, p, batch), theta, (phi,), v, solve)[0]

    theta, phi = arrays(case.params), arrays(case.hparams)
    batch, dev_batch = arrays(case.batch), arrays(case.dev_batch)

    def gradient() -> Sequence[Tensor]:
        found = jax.block_until_ready(compiled(theta, phi, batch, dev_batch))
        return [torch.from_numpy(np.array(g)) for g in found]

    return gradient
