"""torch-geometric: graph layers over batches of features, of edges and of weights; pooling, scattering."""

import pytest
import torch

from vmap_core import DataDependentError, fallback_policy, vmap
from vmap_core.testing import check_rule

geometric = pytest.importorskip("torch_geometric", reason="torch-geometric is not installed")

from torch_geometric import nn as G  # noqa: E402
from torch_geometric import utils  # noqa: E402
from torch_geometric.data import Data  # noqa: E402

from vmap_autograd import per_sample_grads  # noqa: E402

SIZES = (3, 1)
EDGES = torch.tensor([[0, 1, 2, 3, 0, 2], [1, 2, 3, 0, 2, 1]])
WEIGHTS = torch.rand(6, generator=torch.Generator().manual_seed(0))
X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
GROUPS = torch.tensor([0, 0, 1, 1])

LAYERS = {
    "GCNConv": lambda: G.GCNConv(5, 3),
    "SAGEConv": lambda: G.SAGEConv(5, 3),
    "GraphConv": lambda: G.GraphConv(5, 3),
    "GATConv": lambda: G.GATConv(5, 3, heads=2),
    "GATv2Conv": lambda: G.GATv2Conv(5, 3),
    "GINConv": lambda: G.GINConv(torch.nn.Linear(5, 3)),
    "ChebConv": lambda: G.ChebConv(5, 3, K=2),
    "TAGConv": lambda: G.TAGConv(5, 3),
    "TransformerConv": lambda: G.TransformerConv(5, 3),
    "ResGatedGraphConv": lambda: G.ResGatedGraphConv(5, 3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    torch.manual_seed(0)
    layer = LAYERS[name]()
    assert check_rule(lambda x: layer(x, EDGES), X, batch_sizes=SIZES, nested=False)
    # the graphs differ, too, and none has a self loop
    assert check_rule(layer, X, EDGES, batch_sizes=SIZES, nested=False)


OPERATIONS = {
    **{
        f"global_{how}_pool": (lambda x, how=how: getattr(G, f"global_{how}_pool")(x, GROUPS, 2), X)
        for how in ("add", "mean", "max")
    },
    **{
        f"scatter, {how}": (lambda w, i, how=how: utils.scatter(w, i, 0, 4, reduce=how), WEIGHTS, EDGES[0])
        for how in ("sum", "mean", "max", "min", "mul")
    },
    "softmax": (lambda w, i: utils.softmax(w, i, num_nodes=4), WEIGHTS, EDGES[0]),
    "degree": (lambda i: utils.degree(i, 4), EDGES[0]),
    "to_dense_adj": (lambda w: utils.to_dense_adj(EDGES, edge_attr=w), WEIGHTS),
    "add_self_loops": (lambda e: utils.add_self_loops(e, num_nodes=4)[0], EDGES),
    "get_laplacian": (lambda w: utils.get_laplacian(EDGES, w, normalization="sym", num_nodes=4)[1], WEIGHTS),
    "Data": (lambda x: (lambda d: d.x.sum() * d.num_nodes)(Data(x=x, edge_index=EDGES)), X),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name):
    function, *sample = OPERATIONS[name]
    assert check_rule(function, *sample, batch_sizes=SIZES, nested=False)


def test_graphs_of_different_sizes_say_so():
    layer = G.GCNConv(5, 3)
    looped = EDGES.clone()
    looped[1, 0] = 0  # an edge from a node to itself, which the layer takes out
    with pytest.raises(DataDependentError, match=r"boolean mask.*loop.py"):
        vmap(layer)(torch.stack([X, X]), torch.stack([EDGES, looped]))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = G.GCNConv(5, 8), G.GCNConv(8, 2)

    def forward(self, x):
        return self.two(self.one(x, EDGES).relu(), EDGES).mean(0)


def test_gradients_per_graph():
    torch.manual_seed(0)
    net, xs, targets = Net(), torch.randn(3, 4, 5), torch.randn(3, 2)
    loss = torch.nn.functional.mse_loss
    with fallback_policy("error"):
        got = per_sample_grads(net, loss)(xs, targets)
    for i in range(3):
        expected = torch.autograd.grad(loss(net(xs[i]), targets[i]), list(net.parameters()))
        for (name, _), e in zip(net.named_parameters(), expected, strict=True):
            torch.testing.assert_close(got[name][i], e)
