"""What the sanitizers watch: every path, dtype and feature of the CPU kernels, tails included."""

import itertools

import torch

import hetkern

calls = 0


def both_ways(f, *inputs):
    """Forward, backward and double backward."""
    global calls
    leaves = [t for t in inputs if t.requires_grad]
    y = f(*inputs)
    first = torch.autograd.grad(y.float().exp().sum(), leaves, create_graph=True)
    torch.autograd.grad(sum(g.float().square().sum() for g in first), leaves)
    calls += 1


def leaf(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype).requires_grad_()


def main():
    torch.manual_seed(0)
    native = hetkern.impl.native
    assert native is not None and native.threads() == 4
    plans = [native.softmax_plan(M, N, columns, "float32", "float32") for M, N, columns in
             [(64, 1000, False), (1, 70001, False), (64, 1000, True)]]  # fmt: skip
    assert {p["path"] for p in plans} == {"whole_rows", "split_rows", "columns"}
    assert all(p["tasks"] >= 2 for p in plans), "one thread would hide every race"

    dtypes = torch.float32, torch.float64, torch.bfloat16, torch.float16
    for dtype, f in itertools.product(dtypes, (hetkern.softmax, hetkern.log_softmax)):
        for shape, dim in (
            ((5, 1), 1),
            ((67, 1003), 1),
            ((3, 65, 18), 1),
            ((2, 3000, 17), 1),
            ((1, 70001), 1),
        ):
            both_ways(lambda x, f=f, dim=dim: f(x, dim), leaf(*shape, dtype=dtype))
        mask = torch.rand(6, 1, 33) > 0.3
        inputs = leaf(6, 40, 33, dtype=dtype), leaf(40, 1, dtype=dtype), leaf(6, 1, dtype=dtype)
        both_ways(
            lambda x, b, s, f=f, m=mask: f(
                x, scale=0.7, softcap=3.0, bias=b, mask=m, causal=True, sink=s
            ),
            *inputs,
        )
        both_ways(lambda x, f=f: f(x[:, 1::2].t(), 0), leaf(9, 31, dtype=dtype))
    cross_entropies(dtypes)
    print(f"{calls} calls on {native.threads()} threads")


def cross_entropies(dtypes):
    for dtype in dtypes:
        for shape in ((7, 1), (67, 1003), (3, 65, 18), (1, 70001)):
            classes = shape[1]
            target = torch.randint(0, classes, (shape[0], *shape[2:]))
            target.view(-1)[0] = -100
            weight = torch.rand(classes).to(dtype)
            for reduction in ("none", "sum", "mean"):
                both_ways(
                    lambda x, t=target, r=reduction: hetkern.cross_entropy(x, t, reduction=r),
                    leaf(*shape, dtype=dtype),
                )
            options = {"label_smoothing": 0.1, "scale": 0.7, "softcap": 3.0, "z_loss": 1e-3}
            both_ways(
                lambda x, t=target, w=weight, o=options: hetkern.cross_entropy(x, t, w, **o),
                leaf(*shape, dtype=dtype),
            )
            soft = torch.rand(shape).to(dtype).requires_grad_()
            both_ways(
                lambda x, q, w=weight: hetkern.cross_entropy(x, q, w, label_smoothing=0.1),
                leaf(*shape, dtype=dtype),
                soft,
            )


if __name__ == "__main__":
    main()
