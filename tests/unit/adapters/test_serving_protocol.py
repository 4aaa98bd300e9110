"""Requests of the Open Inference Protocol are understood whole, or refused with a sentence that says why."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from licet_adapters.jobs import oip, tabular, tabular_numpy
from licet_adapters.serving.plane import Route, parse_route

SIGNATURE = oip.Signature({"income": False, "ratio": False, "single": True}, 0.5)


def tensor(name: str, data: Any, **changes: Any) -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": "FP32", "data": data} | changes


def request(**changes: Any) -> dict[str, Any]:
    inputs = {
        "income": tensor("income", [1.5, 2]),
        "ratio": tensor("ratio", [0.25, 0.5]),
        "single": tensor("single", [True, False], datatype="BOOL"),
    }
    inputs |= {name: one for name, one in changes.items() if name in inputs or name == "more"}
    rest = {name: one for name, one in changes.items() if name in {"id", "outputs", "parameters"}}
    return {"inputs": [one for one in inputs.values() if one is not None], **rest}


def parse(value: Any, max_rows: int = 8) -> oip.Asked:
    return oip.parse_request(value if isinstance(value, bytes) else json.dumps(value).encode(), SIGNATURE, max_rows)


def test_rows_come_in_the_order_of_the_models_columns_whatever_the_order_of_the_inputs() -> None:
    asked = request()
    asked["inputs"].reverse()
    assert parse(asked).rows.tolist() == [[1.5, 0.25, 1.0], [2.0, 0.5, 0.0]]


def test_a_column_may_have_a_second_dimension_of_one_flat_or_nested() -> None:
    for data in ([1.5, 2.0], [[1.5], [2.0]]):
        asked = parse(request(income={"name": "income", "shape": [2, 1], "datatype": "FP64", "data": data}))
        assert asked.rows[:, 0].tolist() == [1.5, 2.0]


def test_outputs_that_were_asked_for_are_given_and_no_others() -> None:
    asked = parse(request(id="x", outputs=[{"name": "label"}]))
    answer = json.loads(
        oip.answer(asked, np.float32([0.25, 0.75]), np.array([False, True]), name="northbank/credit", version="3")
    )
    assert answer == {
        "model_name": "northbank/credit",
        "model_version": "3",
        "id": "x",
        "outputs": [{"name": "label", "shape": [2], "datatype": "BOOL", "data": [False, True]}],
    }


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (b"", "not an inference request: it is empty"),
        (b"{", "not an inference request"),
        (b"\xff\xfe", "not an inference request"),
        (b'{"inputs":[{"name":"\xff"}]}', "not an inference request: it is not UTF-8"),
        (b'{"inputs":' + b"[" * 100_000, "not an inference request"),
        (
            b'{"inputs":[{"name":"income","shape":[1],"datatype":"FP32","data":'
            + b"[" * 50_000
            + b"]" * 50_000
            + b"}]}",
            "not an inference request: it is nested too deeply",
        ),
        ({"inputs": "all"}, "not an inference request"),
        (b'{"inputs":[{"name":"income","shape":[1],"datatype":"FP32","data":[NaN]}]}', "not an inference request"),
        ({"inputs": []}, "input 'income' is missing"),
        (request(ratio=None), "input 'ratio' is missing; the model takes 3 inputs"),
        (request(more=tensor("age", [1, 2])), "input 'age' is unknown"),
        (request(more=tensor("income", [1, 2])), "input 'income' is given twice"),
        (request(income=tensor("income", [1, 2], datatype="FP31")), "has datatype 'FP31'"),
        (request(income=tensor("income", [True, False], datatype="BOOL")), "the model takes numbers here"),
        (request(income=tensor("income", [1, 2, 3], shape=[2])), "has 3 values; its shape says 2"),
        (request(income=tensor("income", [1, 2], shape=[2, 2])), "[rows] or [rows, 1] is taken"),
        (request(income=tensor("income", [1, 2], shape=[])), "[rows] or [rows, 1] is taken"),
        (request(income=tensor("income", [1, 2], shape=[-1])), "has -1 rows; 1 to 8 are taken"),
        (request(income=tensor("income", [1, 2], shape=[10**9])), "has 1000000000 rows"),
        (request(income=tensor("income", [], shape=[0])), "has 0 rows"),
        (request(ratio=tensor("ratio", [1])), "all inputs have the same rows"),
        (request(income=tensor("income", [[1, 2]], shape=[2])), "nested otherwise"),
        (request(income=tensor("income", [1, "2"])), "holds a value that is text"),
        (request(income=tensor("income", [1, None])), "holds a value that is null"),
        (request(income=tensor("income", [1, True])), "holds a value that is true or false"),
        (request(income=tensor("income", [1, 2.5], datatype="INT32")), "no whole number"),
        (request(income=tensor("income", [1, 128], datatype="INT8")), "beyond INT8"),
        (request(income=tensor("income", [1, -1], datatype="UINT8")), "beyond UINT8"),
        (request(income=tensor("income", [1, 1e39])), "not finite in FP32"),
        (request(income=tensor("income", [1, 10**40])), "not finite in FP32"),
        (request(single=tensor("single", [1, 2])), "is a yes or no"),
        (request(single=tensor("single", [1, 0], datatype="BOOL")), "of datatype BOOL holds a value that is a number"),
        (request(outputs=[{"name": "logit"}]), "output 'logit' is unknown"),
        (request(id="x" * 201), "`id` has more than 200 characters"),
    ],
)
def test_what_is_wrong_is_refused_and_named(asked: Any, why: str) -> None:
    with pytest.raises(oip.Malformed) as refused:
        parse(asked)
    assert why in str(refused.value)


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["name", "shape", "datatype", "data", "inputs", "id"]), inner, max_size=5),
                    max_leaves=12))  # fmt: skip
def test_whatever_is_sent_is_understood_or_refused(value: Any) -> None:
    for sent in (value, {"inputs": value}, {"inputs": [value, value]}, request(income=value)):
        try:
            asked = parse(sent)
        except oip.Malformed:
            continue
        assert asked.rows.shape[1] == len(SIGNATURE.features)
        assert np.isfinite(asked.rows).all()


@given(
    st.lists(
        st.tuples(
            st.floats(width=32, allow_nan=False, allow_infinity=False),
            st.floats(width=32, allow_nan=False, allow_infinity=False),
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_what_is_sent_is_what_the_model_sees(rows: list[tuple[float, float, bool]]) -> None:
    income, ratio, single = (list(column) for column in zip(*rows, strict=True))
    asked = request(
        income=tensor("income", income), ratio=tensor("ratio", ratio), single=tensor("single", single, datatype="BOOL")
    )
    expected = np.asarray([[a, b, float(c)] for a, b, c in rows], dtype=np.float32)
    assert parse(asked).rows.tolist() == expected.tolist()


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "silu"])
def test_the_network_that_serves_is_the_network_that_was_trained(activation: str) -> None:
    declaration = {
        "features": [{"name": name, "encoding": "number"} for name in "abc"],
        "hidden": [7, 5],
        "activation": activation,
    }
    tabular.make_deterministic(3)
    trained = tabular.Network(declaration)
    rows = torch.randn(64, 3) * 4
    trained.normalise.fit(rows)
    serving = tabular_numpy.Network(declaration, tabular.safetensors.torch.save(trained.state_dict()))
    with torch.no_grad():
        expected = trained(rows).numpy()
    assert np.allclose(serving(rows.numpy()), expected, atol=2e-6)


def test_weights_that_do_not_fit_are_refused() -> None:
    declaration = {"features": [{"name": "a"}], "hidden": [], "activation": "relu"}
    fitting = tabular.Network(
        {"features": [{"name": "a", "encoding": "number"}], "hidden": [], "activation": "relu"}
    ).state_dict()
    save = tabular.safetensors.torch.save
    for weights in (
        b"",
        save(fitting | {"more": torch.zeros(1)}),
        save({name: one for name, one in fitting.items() if name != "layers.0.bias"}),
        save(fitting | {"layers.0.weight": torch.zeros(1, 2)}),
        save(fitting | {"layers.0.bias": torch.tensor([float("nan")])}),
    ):
        with pytest.raises(tabular_numpy.Refused):
            tabular_numpy.Network(declaration, weights)


@pytest.mark.parametrize(
    ("target", "route"),
    [
        (b"/v2/models/northbank/credit/infer", Route("northbank/credit", None, "infer")),
        (b"/v2/models/northbank.credit/infer", Route("northbank/credit", None, "infer")),
        (b"/v2/models/northbank%2Fcredit/infer?x=1", Route("northbank/credit", None, "infer")),
        (b"/v2/models/northbank/credit/versions/2/ready", Route("northbank/credit", 2, "ready")),
        (b"/v2/models/northbank/credit/versions/latest", Route("northbank/credit", 0, "metadata")),
        (b"/v2/models/northbank/credit", Route("northbank/credit", None, "metadata")),
        (b"/v2/models/northbank/ready", Route("northbank/ready", None, "metadata")),
        (b"/v2/models/northbank/infer/infer", Route("northbank/infer", None, "infer")),
        # No endpoints: who calls is told so, once it is known who calls.
        (b"/v2/models/northbank", Route("northbank", None, "metadata")),
        (b"/v2/models/northbank/credit-/infer", Route("northbank/credit-", None, "infer")),
        (b"/v2/models/northbank/Credit/versions/2/infer", Route("northbank/Credit", None, "infer")),
        (b"/v2/models/northbank/my%20credit/infer", Route("northbank/my credit", None, "infer")),
        (b"/v2/models/northbank/../lakeside/infer", Route("northbank/../lakeside", None, "infer")),
        (b"/v2/models/northbank/credit/infer/", Route("northbank/credit/infer/", None, "metadata")),
        (b"/v2/models/" + b"n" * 2000, Route("n" * 128, None, "metadata")),
        (b"/v2/models/", None),
        (b"/v2/models/northbank/credit\n/infer", None),
    ],
)
def test_targets_are_read(target: bytes, route: Route | None) -> None:
    assert parse_route(target) == route
