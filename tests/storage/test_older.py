"""Run folders of earlier versions: they evaluate to their old figures, or are refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import pyro_vaes as pv
from pyro_vaes.cli.app import cli
from pyro_vaes.storage.files import RunFolderError
from pyro_vaes.storage.older import up_to_date
from pyro_vaes.storage.tensors import fill, named_tensors, read_tensors
from pyro_vaes.training.checkpoint import check_same

# A table of three columns, trained by 0.1.0 as of 9cdbcd2, before parts knew units.
OLD = Path(__file__).parent / "old_run"
NLL = 4.655445775662136


@pytest.fixture
def old(tmp_path, monkeypatch):
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluated(*flags):
    return CliRunner().invoke(cli, ["evaluate", ".", "--samples", "1000", "--json", *flags])


def test_an_older_run_evaluates_to_its_old_figure(old):
    result = evaluated("--proposal", "encoder")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["nll"] == pytest.approx(NLL, abs=1e-5)


def test_data_that_are_read_otherwise_are_refused_by_version(old):
    text = (old / "small.csv").read_text()
    (old / "small.csv").write_text(text.replace("0.1", "0.2"))
    result = evaluated()
    message = str(result.exception)
    assert "written by pyro_vaes 0.1.0, before weights held their version" in message


def test_weights_that_no_longer_fit_name_their_version(old):
    vae = pv.load(old)
    other = pv.VAE(vae.prior, vae.posterior, pv.NormalLikelihood(pv.MLP(2, [9]), (3,)))
    with pytest.raises(RunFolderError, match=r"by pyro_vaes 0\.1\.0, before weights held"):
        pv.load(old, into=other)


def test_resuming_an_older_run_names_its_version(tmp_path):
    record = {"options": {}, "identity": {"data": "a"}, "history": {}}

    class Options:
        def changed_since(self, _):
            return []

    with pytest.raises(RunFolderError, match=r"It was started by pyro_vaes 0\.1\.0"):
        check_same(record, Options(), {"data": "b"}, tmp_path)


def test_what_is_written_now_holds_the_version(tmp_path):
    path = pv.save(pv.load(OLD), tmp_path)
    assert read_tensors(path)[1]["version"] == pv.__version__


@pytest.mark.parametrize("grid", [False, True])
def test_pseudo_inputs_of_an_older_version_stay_where_they_were(grid):
    torch.manual_seed(0)
    x = 5 + torch.randn(9, 3)
    inputs = pv.GTMPseudoInputs(pv.MLP(2, [4]), (3,), 2) if grid else x[:4]
    posterior = pv.NormalPosterior(pv.MLP(3, [4]), 2)
    seen = posterior(x).mean
    vae = pv.VAE(
        pv.VampPrior(posterior, inputs), posterior, pv.NormalLikelihood(pv.MLP(2, [4]), (3,))
    )
    units, scale = vae.likelihood.units, vae.likelihood.scale.detach().clone()
    assert not units[0].any()
    inputs = vae.prior.pseudo_inputs.detach().clone()
    # What a version without units would have written of the same model.
    old = {k: v.clone() for k, v in named_tensors(vae).items()}
    for name in list(old):
        if name.endswith((".center", ".half_range")) and "posterior" in name:
            old[name] = old[name].flatten()[0]
        elif name.endswith((".center", ".spread")):
            del old[name]
    old["likelihood.log_scale"] = (scale - vae.likelihood.min_scale).log()
    vae.likelihood.initialize_from(x)
    fill(vae, up_to_date(vae, old))
    torch.testing.assert_close(vae.prior.pseudo_inputs, inputs)
    torch.testing.assert_close(vae.likelihood.scale, scale)
    torch.testing.assert_close(vae.posterior(x).mean, seen)
