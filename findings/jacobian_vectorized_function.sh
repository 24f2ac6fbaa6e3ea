#!/usr/bin/env bash
# torch 2.13.0: a penalty on a Jacobian of jacobian(…, create_graph=True, vectorize=True) loses the part of its gradient that goes through an
# autograd.Function.
# Seen: a function is x³ plus the square of x, which an autograd.Function multiplies; its backward multiplies by the same Function, so that it
# can be differentiated twice. The Jacobian is right with vectorize=True and without. The gradient of the sum of its squares is right without,
# and with vectorize=True it is smaller by a quarter to a tenth, without an error or a warning: what went through the Function is missing. Where
# nothing else is differentiable, the Jacobian requires no gradient at all. With x * x in the Function's place both ways agree.
# Expected: one gradient for both, as torch.autograd.functional.jacobian says that vectorize changes how it is computed. torch.func.jacrev does
# not take such a Function: it asks for setup_context.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
venv/bin/python -W ignore - <<'END'
import torch
from torch.autograd.functional import jacobian

print("torch", torch.__version__)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, gradient):
        a, b = ctx.saved_tensors
        return Product.apply(gradient, b), Product.apply(gradient, a)


def penalty_gradient(square, **how):
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    slopes = jacobian(lambda t: square(t) + t**3, x, create_graph=True, **how)
    assert slopes.diagonal().tolist() == [5, 16, 33]
    return torch.autograd.grad(slopes.square().sum(), x)[0].tolist()


squares = {"Function": lambda t: Product.apply(t, t), "operator": lambda t: t * t}
found = {
    (name, vectorize): penalty_gradient(square, vectorize=vectorize)
    for name, square in squares.items()
    for vectorize in (False, True)
}
for case, gradient in found.items():
    print(*case, gradient)
assert found.pop(("Function", True)) == [60, 384, 1188], "the Function's part is there now"
right = [80, 448, 1320]  # 2 (2x + 3x²) (2 + 6x)
assert all(gradient == right for gradient in found.values())
x = torch.ones(3, requires_grad=True)
alone = jacobian(squares["Function"], x, create_graph=True, vectorize=True)
print("the Function alone, its Jacobian requires a gradient:", alone.requires_grad)
assert not alone.requires_grad
END
