"""What every reader of JAX's programs has to know of their equations."""

from typing import Any

from jax.extend.core import ClosedJaxpr


def called(equation: Any) -> ClosedJaxpr | None:
    """The program that an equation is another name for, if it is one."""
    if equation.primitive.name in ("jit", "closed_call", "custom_jvp_call", "custom_vjp_call"):
        return equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    return None


def default_spelling(equation: Any) -> ClosedJaxpr | None:
    """Of `jax.lax.platform_dependent`'s spellings the one for all platforms that have none of their
    own, if an equation is such a choice. Its first read is the platform's number."""
    platforms = equation.params.get("branches_platforms")
    if equation.primitive.name != "cond" or platforms is None:
        return None
    return equation.params["branches"][platforms.index(None)]
