"""Lists in kleinbild.toml: providers, deployments, aliases, keys, budgets and rules; what is wrong is said, secrets are not."""

from __future__ import annotations

import re
from dataclasses import fields
from decimal import Decimal
from pathlib import Path

import pytest

from kleinbild.core.prices import Price
from kleinbild.gateway.configured import ARRAYS, PriceSettings
from kleinbild.gateway.opened import rules_of
from kleinbild.gateway.settings import ConfigurationError, Settings, read_configuration

PAGE = Path(__file__).parents[3] / "docs" / "gateway.md"
PROVIDER = '[[providers]]\nname = "alpha"\nkind = "openai"\nbase_url = "http://127.0.0.1:9001/v1"\n'
DEPLOYMENT = '[[deployments]]\nname = "alpha-sketch"\nmodel = "sketch"\nprovider = "alpha"\n'
BOTH = PROVIDER + DEPLOYMENT


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(text: str) -> Settings:
    Path("kleinbild.toml").write_text(text)
    return read_configuration().settings


def refused(text: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        read(text)
    return caught.value


def example() -> str:
    """All TOML of the page, as one file."""
    return "".join(re.findall(r"```toml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))


def test_the_example_of_the_page_is_read_and_has_every_list() -> None:
    found = read(example())
    for array in ARRAYS:
        assert getattr(found, array), array
    assert [rule.effect for rule in rules_of(found)] == ["require"]
    assert found.deployments[0].price is not None
    assert found.deployments[0].price.per_image == Decimal("0.010")


def test_each_entry_says_where_it_is_from() -> None:
    Path("kleinbild.toml").write_text(BOTH + '[[budgets]]\nscope = "project"\nsubject = "acme"\namount = 5\n')
    assert read_configuration().sources == {
        "providers.alpha": "kleinbild.toml",
        "deployments.alpha-sketch": "kleinbild.toml",
        "budgets.project acme": "kleinbild.toml",
    }


def test_with_nothing_configured_the_engine_is_there_and_free() -> None:
    found = read("")
    assert [(each.name, each.kind) for each in found.all_providers] == [("local", "local")]
    [nano] = found.all_deployments
    assert (nano.name, nano.model, nano.provider, nano.at_provider) == ("nano", "nano", "local", "nano")
    assert nano.price is not None
    assert (nano.price.per_image, nano.price.version) == (0, "local")


def test_the_engine_stays_beside_hosted_providers_and_comes_first() -> None:
    found = read(BOTH)
    assert [each.name for each in found.all_deployments] == ["nano", "alpha-sketch"]
    assert [each.name for each in found.all_providers] == ["local", "alpha"]


def test_without_models_of_the_engine_there_is_no_engine() -> None:
    found = read("[engine]\nmodels = []\n" + BOTH)
    assert [each.name for each in found.all_deployments] == ["alpha-sketch"]


def test_a_deployment_of_the_engine_takes_the_place_of_the_one_that_is_there_anyway() -> None:
    found = read('[[deployments]]\nname = "here"\nmodel = "sketch"\nprovider = "local"\nprovider_model = "nano"\n')
    assert [(each.name, each.model) for each in found.all_deployments] == [("here", "sketch")]


def test_a_provider_of_kind_local_may_have_another_name() -> None:
    found = read('[[providers]]\nname = "den"\nkind = "local"\n')
    assert [(each.name, each.provider) for each in found.all_deployments] == [("nano", "den")]


def test_prices_are_written_as_the_core_has_them() -> None:
    assert set(PriceSettings.model_fields) == {part.name for part in fields(Price)}
    assert PriceSettings.model_validate({"per_image": 1, "per_step": "0.5"}).per_step == Decimal("0.5")


def test_a_usual_key_goes_to_the_services_own_address_alone() -> None:
    found = read(
        '[[providers]]\nname = "a"\nkind = "bfl"\n[[providers]]\nname = "b"\nkind = "bfl"\nbase_url = "https://b.example"\n'
    )
    assert [each.key_variable for each in found.providers] == ["BFL_API_KEY", None]


def test_what_may_be_paid_twice_stands_instead_of_on_unknown() -> None:
    assert read("").routing.unknown == "after_collect"
    assert read('[routing]\nallow_double_up_to = "0.05"\n').routing.unknown == Decimal("0.05")
    error = refused('[routing]\non_unknown = "never"\nallow_double_up_to = "0.05"\n')
    assert "set one of them" in error.message


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        (BOTH + "price = { per_image = 0.01 }\n", "deployments.alpha-sketch.price.per_image is wrong: a number with a point", ""),
        (BOTH + 'price = { per_image = "cheap" }\n', "'cheap' is no amount of money", ""),
        (BOTH + 'price = { per_image = "-1" }\n', "less than nothing", ""),
        (BOTH + 'price = { per_picture = "1" }\n', "price.per_picture is not known (kleinbild.toml)", "price knows per_request, per_image"),
        (BOTH + 'price = { source = "a friend" }\n', "there is no amount in it", ""),
        (BOTH + "quality = 2\n", "deployments.alpha-sketch.quality is wrong: Input should be less than or equal to 1, given was 2", ""),
        (BOTH + 'tasks = ["image.paint"]\n', "deployments.alpha-sketch.tasks is wrong", ""),
        ('[[deployments]]\nname = "x"\nmodel = "nano"\nprovider_model = "nano"\nprovider = "local"\nseed = true\n', "of the kind local it is known who takes a seed", "leave it out"),
        (BOTH + 'modle = "x"\n', "deployments.alpha-sketch.modle is not known", "did you mean model? deployments knows name, model,"),
        ('[[deployments]]\nmodel = "x"\nprovider = "local"\n', "deployments.#1.name is missing", "deployments knows name"),
        (PROVIDER + '[[deployments]]\nname = "x"\nmodel = "x"\nprovider = "alhpa"\n', "deployments.x.provider is wrong: there is no provider 'alhpa'", "did you mean alpha? providers are alpha, local"),
        ('[[deployments]]\nname = "x"\nmodel = "x"\nprovider = "local"\n', "the engine does not serve 'x'", "engine.models lists what it serves: nano"),
        (PROVIDER + DEPLOYMENT.replace("alpha-sketch", "nano"), "deployments.nano is wrong: the model of the engine has", "take nano out"),
        (BOTH + DEPLOYMENT, "deployments.alpha-sketch is wrong: it is there twice", "[[deployments]]"),
        (PROVIDER + PROVIDER, "providers.alpha is wrong: it is there twice", ""),
        ('[[providers]]\nname = "local"\nkind = "bfl"\n', "local is the engine", ""),
        ('[[providers]]\nname = "a"\nkind = "local"\n[[providers]]\nname = "b"\nkind = "local"\n', "providers.b is wrong: there is one engine", ""),
        ('[[providers]]\nname = "a"\nkind = "local"\nbase_url = "http://x"\n', "neither base_url nor api_key_env", ""),
        ('[[providers]]\nname = "a"\nkind = "dream"\n', "providers.a.kind is wrong: Input should be 'local', 'openai'", ""),
        ('[[aliases]]\nname = "dall-e-3"\nmodel = "nanoo"\n', "aliases.dall-e-3.model is wrong: there is no model 'nanoo'", "did you mean nano?"),
        ('[[aliases]]\nname = "nano"\nmodel = "nano"\n', "aliases.nano is wrong: there is a model of this name", ""),
        ('[[budgets]]\nscope = "model"\nsubject = "nanoo"\namount = 1\n', "budgets.model nanoo.subject is wrong", "did you mean nano?"),
        ('[[budgets]]\nscope = "team"\nsubject = "x"\namount = 1\n', "budgets.team x.scope is wrong", ""),
        ('[[budgets]]\nscope = "project"\nsubject = "x"\namount = 1\nwindow = "a while"\n', "not a span of time such as 12h or 30d", ""),
        ('[[keys]]\nname = "k"\nsecret_env = "K"\nmodels = ["nanoo"]\n', "keys.k.models is wrong: there is no model 'nanoo'", "did you mean nano?"),
        ('[[keys]]\nname = "k"\nsecret_env = "K"\nlimits = { requests_per_minut = 1 }\n', "keys.k.limits.requests_per_minut is not known", "did you mean requests_per_minute?"),
        ('[[rules]]\nname = "r"\nwhen = "true"\nthen = { exclude = "a", prefer = "b" }\n', "rules.r.then is wrong: it is one of exclude, prefer,", ""),
        ('[[rules]]\nname = "r"\nwhen = "true"\nthen = {}\n', "rules.r.then is wrong: it is one of", ""),
        ('[providers]\nname = "a"\n', "providers is a list", "write [[providers]] above each"),
        ("[[server]]\nport = 1\n", "server is a section", "write [server]"),
        ('[[deployment]]\nname = "a"\n', "unknown list 'deployment' (kleinbild.toml)", "did you mean deployments?"),
        ("[engine]\nmodels = []\n", "engine.models is wrong: it is empty and there are no [[deployments]]", ""),
        ('[routing]\npolicy = "luck"\n', "routing.policy is wrong: 'luck' is no policy", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place_and_what_is_allowed(text: str, said: str, hint: str) -> None:
    error = refused(text)
    assert said in error.message
    assert "kleinbild.toml" in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PROVIDER + 'api_key = "s3cret"\n', "api_key_env"),
        (PROVIDER + 'api_key_env = "s3cret"\n', "in capitals, such as ALPHA_KEY"),
        ('[[providers]]\nname = "a"\nkind = "openai"\nbase_url = "https://me:s3cret@api.example"\n', "a user or a password"),
        ('[[providers]]\nname = "a"\nkind = "openai"\nbase_url = "https://s3cret@api.example"\n', "a user or a password"),
        ('[[providers]]\nname = "a"\nkind = "openai"\nbase_url = "https://api.example?key=s3cret"\n', "it is not an address"),
        ('[[providers]]\nname = "a"\nkind = "openai"\nbase_url = "s3cret"\n', "it is not an address"),
        ('[[keys]]\nname = "k"\nsecret = "s3cret"\n', "secret_env"),
        ('[[keys]]\nname = "k"\nsecret_env = "s3cret"\n', "in capitals"),
        (BOTH + 'price = "s3cret"\napi_key = "s3cret"\n', "api_key is not known"),
    ],
)  # fmt: skip
def test_a_secret_in_the_file_is_refused_and_not_shown(text: str, said: str) -> None:
    error = refused(text)
    assert said in f"{error.message} {error.hint}"
    assert (
        "s3cret"
        not in f"{error.message} {error.hint} {error.__cause__} {error.__context__ if not error.__suppress_context__ else ''}"
    )


def test_lists_are_not_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLEINBILD_DEPLOYMENTS__MODEL", "s3cret")
    with pytest.raises(ConfigurationError) as caught:
        read_configuration()
    assert caught.value.message == "KLEINBILD_DEPLOYMENTS__MODEL: deployments cannot be set in the environment"
    assert caught.value.hint == "write [[deployments]] in the file"


def test_sections_of_the_gateway_are_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLEINBILD_ROUTING__POLICY", "cost")
    monkeypatch.setenv("KLEINBILD_ROUTING__HEDGE", "true")
    monkeypatch.setenv("KLEINBILD_ROUTING__ALLOW_DOUBLE_UP_TO", "0.05")
    found = read("[routing]\npolicy = 'latency'\n").routing
    assert (found.policy, found.hedge, found.unknown) == ("cost", True, Decimal("0.05"))
