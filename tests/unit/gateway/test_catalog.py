"""What is known of hosted services: each fact has a source and a day, a bad file is refused, and prices reach deployments."""

from __future__ import annotations

import json
import logging
from decimal import Decimal
from pathlib import Path

import pytest

from kleinbild.cli.app import invoke
from kleinbild.core.deployments import PROVIDER_KINDS, UNKNOWN_PRICE, Can, ProviderKind
from kleinbild.core.prices import Measure, UnknownPriceError
from kleinbild.core.sizes import SizeRange
from kleinbild.gateway import catalog
from kleinbild.gateway.catalog import FILE, Catalog, CatalogError, KnownPrice, current, load, parsed, shipped, usable
from kleinbild.gateway.configured import PriceSettings, ProviderSettings
from kleinbild.gateway.deployments import (
    AccountLimits,
    aliases_of,
    deployments_of,
    key_of,
    limits_of,
    model_limits_of,
    price_of,
    require_secrets,
)
from kleinbild.gateway.settings import ConfigurationError, Settings
from kleinbild.providers.kinds import capabilities

NEWER = 'version = "2099-01-01"\n'
FACT = 'source = "somebody"\nread_on = 2099-01-01\n'
MODEL = f'[[models]]\nkind = "bfl"\nprovider_model = "m"\nconfidence = "low"\n[models.price]\nper_image = "1"\n{FACT}'
BFL = {"name": "bfl", "kind": "bfl"}


def can(_: ProviderSettings, __: str) -> Can:
    return Can(frozenset({"image.generate", "image.edit"}), frozenset())


def settings(**lists: object) -> Settings:
    return Settings.model_validate(lists)


def at_bfl(**more: object) -> Settings:
    return settings(providers=[BFL], deployments=[{"name": "d", "model": "klein", "provider": "bfl", **more}])


def refused(text: str) -> str:
    with pytest.raises(CatalogError) as caught:
        parsed(text, "it")
    return f"{caught.value.message} {caught.value.hint}"


def test_every_shipped_price_has_a_source_and_a_day_and_says_how_far_to_trust_it() -> None:
    prices = [model.price for model in shipped().models if model.price is not None]
    assert len(prices) > 10
    for price in prices:
        assert price.source
        assert "2026-01-01" <= price.read_on <= shipped().version[:10]
        assert price_of(price).is_known
    assert KnownPrice.model_fields["source"].is_required()
    assert KnownPrice.model_fields["read_on"].is_required()


def test_where_sources_disagree_the_price_is_marked() -> None:
    fal = shipped().find("fal", "fal-ai/flux-2/klein/4b")
    assert fal is not None
    assert fal.confidence == "low"


@pytest.mark.parametrize(
    ("kind", "model", "measure", "dollars"),
    [
        ("bfl", "flux-2-klein-4b", Measure(megapixels=Decimal(1)), "0.014"),
        ("bfl", "flux-2-klein-4b", Measure(megapixels=Decimal(2)), "0.015"),
        ("bfl", "flux-2-pro", Measure(megapixels=Decimal(1), input_megapixels=Decimal(1)), "0.045"),
        ("bfl", "flux-2-flex", Measure(megapixels=Decimal(1), input_megapixels=Decimal(1)), "0.10"),
        ("stability", "sd3.5-medium", Measure(images=2), "0.070"),
        ("openai", "gpt-image-2.5-flare", Measure(quality="high"), "0.05268"),
        ("openai", "gpt-image-2.5-flare-2026-09-08", Measure(quality="low"), "0.00588"),
    ],
)
def test_published_examples_come_out(kind: ProviderKind, model: str, measure: Measure, dollars: str) -> None:
    known = shipped().find(kind, model)
    assert known is not None
    assert known.price is not None
    assert price_of(known.price).of(measure) == Decimal(dollars)


def test_what_nobody_publishes_is_unknown_and_not_free() -> None:
    known = shipped().find("openai", "gpt-image-2")
    assert known is not None
    assert known.price is not None
    with pytest.raises(UnknownPriceError):
        price_of(known.price).of(Measure())


def test_each_alias_that_is_shipped_leads_to_a_model_that_is_not_retired() -> None:
    for alias in shipped().aliases:
        [target] = [model for model in shipped().models if alias.model == model.provider_model]
        assert not target.retired_on


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it: version is missing"),
        ('version = "new"\n', "version is wrong: it is not a day"),
        ("version = [\n", "it is not TOML"),
        (NEWER + MODEL.replace('source = "somebody"\n', ""), "models.bfl m.price.source is missing"),
        (NEWER + MODEL.replace("read_on = 2099-01-01\n", ""), "models.bfl m.price.read_on is missing"),
        (NEWER + MODEL.replace('"somebody"', '""'), "models.bfl m.price.source is wrong"),
        (NEWER + MODEL.replace('"1"', "1.5"), "models.bfl m.price.per_image is wrong: a number with a point"),
        (NEWER + MODEL.replace('"low"', '"sure"'), "models.bfl m.confidence is wrong"),
        (NEWER + MODEL.replace("confidence", "trust"), "models.bfl m.trust is not known"),
        (NEWER + MODEL + MODEL, "models bfl m is there twice"),
        (NEWER + f'[[limits]]\nkind = "bfl"\nmax_active = 0\n{FACT}', "limits.bfl.max_active is wrong"),
        (NEWER + f'[[aliases]]\nname = "a"\nmodel = "b"\n{FACT}', "aliases.a.note is missing"),
    ],
)
def test_a_catalog_that_is_wrong_is_refused_in_words(text: str, said: str) -> None:
    assert said in refused(text)


def test_a_newer_catalog_in_the_data_folder_wins(tmp_path: Path) -> None:
    assert current(tmp_path) is shipped()
    (tmp_path / FILE).write_text(NEWER + MODEL)
    assert current(tmp_path).version == "2099-01-01"
    (tmp_path / FILE).write_text('version = "2020-01-01"\n')
    assert current(tmp_path) is shipped()


def test_a_bad_catalog_in_the_data_folder_is_said_with_its_name(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("version = 3\n")
    with pytest.raises(CatalogError, match=r"catalog\.toml: version is wrong"):
        current(tmp_path)


def test_a_server_starts_with_the_shipped_catalog_if_the_one_in_its_folder_is_bad(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_text("version = 3\n")
    with caplog.at_level(logging.WARNING):
        assert usable(tmp_path) is shipped()
    assert "catalog.toml: version is wrong" in caplog.text


def test_what_is_fetched_is_kept_and_later_ones_must_be_newer(tmp_path: Path) -> None:
    last_good = tmp_path / FILE
    assert load(NEWER + MODEL, last_good).find("bfl", "m") is not None
    assert current(tmp_path).version == "2099-01-01"
    with pytest.raises(CatalogError, match="2099-01-01 is known already"):
        load(NEWER, last_good)
    later = tmp_path / "later.toml"
    later.write_text(NEWER.replace("2099-01-01", "2099-01-01.1"))
    assert load(later, last_good).version == current(tmp_path).version == "2099-01-01.1"
    assert sorted(file.name for file in tmp_path.iterdir()) == [FILE, "later.toml"]


def test_of_what_is_bad_nothing_is_kept(tmp_path: Path) -> None:
    last_good = tmp_path / FILE
    load(NEWER + MODEL, last_good)
    before = last_good.read_bytes()
    for bad in ("version = 1", 'version = "2099-02-01"\nprices = 1\n', 'version = "2020-01-01"\n'):
        with pytest.raises(CatalogError):
            load(bad, last_good)
        assert last_good.read_bytes() == before
    with pytest.raises(CatalogError, match="cannot be read"):
        load(tmp_path / "nowhere", last_good)


def test_a_file_that_went_bad_does_not_keep_a_good_one_out(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("?")
    assert load(NEWER, tmp_path / FILE).version == "2099-01-01"


def test_a_price_is_the_configurations_then_the_catalogs_then_unknown() -> None:
    written = at_bfl(provider_model="flux-2-klein-4b", price={"per_image": "0.5"})
    known = at_bfl(provider_model="flux-2-klein-4b")
    unknown = at_bfl(provider_model="flux-9")
    prices = [deployments_of(each, shipped(), can)[-1].price for each in (written, known, unknown)]
    assert (prices[0].per_image, prices[1].first_megapixel) == (Decimal("0.5"), Decimal("0.014"))
    assert (prices[1].source, prices[1].read_on) != ("", "")
    assert prices[2] == UNKNOWN_PRICE
    assert not prices[2].is_known


def test_the_engines_models_are_free_of_charge() -> None:
    [nano] = deployments_of(settings(), shipped(), can)
    assert (nano.kind, nano.on_machine, nano.price.version) == ("local", True, "local")
    assert nano.price.of(Measure(images=9)) == 0


def test_the_version_of_a_price_follows_its_amounts_alone() -> None:
    def version(**price: object) -> str:
        return price_of(PriceSettings.model_validate(price)).version

    assert version(per_image="0.010") == version(per_image="0.01", source="a friend")
    assert (
        len({version(per_image="0.01"), version(per_step="0.01"), version(per_image="0.02"), version(per_image=0)}) == 4
    )
    assert version(by_quality={"low": "1"}) != version(by_quality={"low": "2"})
    assert version(per_image="0.01", version="v7") == "v7"


def test_a_place_is_asked_for_no_more_than_its_tasks() -> None:
    both = deployments_of(at_bfl(), shipped(), can)[-1]
    cut = deployments_of(at_bfl(tasks=["image.edit"]), shipped(), can)[-1]
    assert both.can.tasks == {"image.generate", "image.edit"}
    assert cut.can.tasks == {"image.edit"}
    with pytest.raises(ConfigurationError, match=r"deployments\.d\.tasks: m does none of them"):
        deployments_of(
            at_bfl(tasks=["image.edit"], provider_model="m"),
            shipped(),
            lambda *_: Can(frozenset({"image.generate"}), frozenset()),
        )


def test_a_server_may_be_said_to_take_a_seed_or_not() -> None:
    def taking(**fields: object) -> Can:
        provider = {"name": "o", "kind": "openai", "base_url": "http://127.0.0.1:9001/v1"}
        found = settings(providers=[provider], deployments=[{"name": "d", "model": "m", "provider": "o", **fields}])
        return deployments_of(found, shipped(), can_there)[-1].can

    def can_there(provider: ProviderSettings, model: str) -> Can:
        return can(provider, model) if provider.kind == "local" else capabilities("openai", model, provider.base_url)

    assert ("seed" in taking().parameters, taking().one_seed) == (True, True)
    assert ("seed" in taking(seed=False).parameters, taking(seed=False).one_seed) == (False, False)
    assert "seed" not in taking(provider_model="gpt-image-2").parameters
    assert "seed" in taking(provider_model="gpt-image-2", seed=True).parameters


def test_the_catalog_knows_steps_that_an_adapter_cannot() -> None:
    assert deployments_of(at_bfl(provider_model="flux-2-klein-4b"), shipped(), can)[-1].can.default_steps == 4


def test_a_deployment_of_what_is_retired_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    found = settings(
        providers=[{"name": "o", "kind": "openai"}], deployments=[{"name": "d", "model": "dall-e-3", "provider": "o"}]
    )
    with caplog.at_level(logging.WARNING):
        deployments_of(found, shipped(), can)
    assert "deployment d: dall-e-3 was retired on 2026-05-12" in caplog.text


def test_aliases_of_what_is_served_hold_by_themselves_and_say_why() -> None:
    provider = {"name": "o", "kind": "openai"}
    deployment = {"name": "d", "model": "gpt-image-2", "provider": "o"}
    assert aliases_of(settings(), shipped()) == {}
    found = aliases_of(settings(providers=[provider], deployments=[deployment]), shipped())
    assert found["dall-e-3"].model == "gpt-image-2"
    assert "retired on 2026-05-12" in found["dall-e-3"].note
    own = settings(
        providers=[provider], deployments=[deployment], aliases=[{"name": "dall-e-3", "model": "nano", "note": "ours"}]
    )
    assert aliases_of(own, shipped())["dall-e-3"].note == "ours"


def test_limits_are_the_configurations_then_the_catalogs() -> None:
    bfl = ProviderSettings.model_validate(BFL)
    assert limits_of(bfl, shipped()).max_active == 24
    assert limits_of(ProviderSettings.model_validate({**BFL, "max_active": 3}), shipped()).max_active == 3
    assert limits_of(ProviderSettings.model_validate({"name": "f", "kind": "fal"}), shipped()).max_active is None
    kontext = shipped().limit("bfl", "flux-kontext-max")
    assert kontext is not None
    assert kontext.max_active == 6


KONTEXT = {"provider_model": "flux-kontext-max"}


def test_limits_of_a_model_are_the_deployments_then_the_catalogs() -> None:
    known = model_limits_of(at_bfl(**KONTEXT), shipped())
    assert known == {"bfl/flux-kontext-max": AccountLimits(max_active=6)}
    own = model_limits_of(at_bfl(**KONTEXT, max_active=2, images_per_minute=9), shipped())
    assert own == {"bfl/flux-kontext-max": AccountLimits(max_active=2, images_per_minute=9)}
    assert model_limits_of(at_bfl(provider_model="flux-2-pro"), shipped()) == {}


def bounded(known: str = "", **own: object) -> Can:
    """What of ABLE is left of a deployment."""
    limit = f'[[limits]]\nkind = "bfl"\nprovider_model = "klein"\n{known}\n{FACT}' if known else ""
    [deployment] = deployments_of(at_bfl(**own), parsed(NEWER + limit, "it"), lambda _, __: ABLE)[1:]
    return deployment.can


ABLE = Can(
    frozenset({"image.generate"}),
    frozenset(),
    sizes=SizeRange(64, 4096, 4_000_000, 16),
    exact_sizes=("1024x1024", "2048x1024"),
    max_images=4,
    max_references=8,
)


def test_what_a_model_can_is_bounded_by_the_catalog_where_a_deployment_does_not_say_otherwise() -> None:
    known = "max_images = 2\nmax_references = 0\nmax_side = 1500\nmax_megapixels = 1.5"
    assert bounded() == ABLE
    can = bounded(known)
    assert (can.max_images, can.max_references, can.exact_sizes) == (2, 0, ("1024x1024",))
    assert can.sizes == SizeRange(64, 1488, 1_500_000, 16)
    can = bounded(known, max_images=3, max_references=5, max_side=2048, max_megapixels=3)
    assert (can.max_images, can.max_references, can.exact_sizes) == (3, 5, ABLE.exact_sizes)
    assert can.sizes == SizeRange(64, 2048, 3_000_000, 16)


@pytest.mark.parametrize("known", ["max_images = 9", "max_side = 9000"])
def test_the_catalog_makes_nothing_possible(known: str) -> None:
    assert bounded(known) == ABLE


@pytest.mark.parametrize(
    ("own", "said"),
    [({"max_images": 5}, "max_images: 5 are more than the 4"), ({"max_side": 64}, "makes no picture that small")],
)
def test_a_deployment_that_says_more_than_a_place_can_or_nothing_that_it_can_is_refused(
    own: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        bounded(**own)


def test_an_account_has_no_limits_of_a_call() -> None:
    told = refused(NEWER + f'[[limits]]\nkind = "bfl"\nmax_images = 2\n{FACT}')
    assert "name it in provider_model" in told


def test_a_key_is_in_the_environment_and_a_missing_one_is_named() -> None:
    bfl = ProviderSettings.model_validate(BFL)
    assert key_of(bfl, {"BFL_API_KEY": " s3cret\n"}) == "s3cret"
    with pytest.raises(ConfigurationError, match=r"BFL_API_KEY is not set in the environment, .* the provider bfl"):
        key_of(bfl, {"BFL_API_KEY": ""})


def test_only_what_is_used_needs_its_key() -> None:
    require_secrets(settings(providers=[BFL]), {})
    with pytest.raises(ConfigurationError, match="BFL_API_KEY"):
        require_secrets(at_bfl(), {})
    require_secrets(at_bfl(), {"BFL_API_KEY": "k"})
    with pytest.raises(ConfigurationError, match=r"SHOP_KEY is not set .* the key shop of callers"):
        require_secrets(settings(keys=[{"name": "shop", "secret_env": "SHOP_KEY"}]), {})


def test_the_command_shows_each_price_with_source_date_and_confidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLEINBILD_SERVER__DATA", str(tmp_path))
    assert invoke(["catalog", "show"]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = lines.index("bfl flux-2-klein-9b")
    assert lines[place + 1 : place + 3] == [
        "    0.015 for the first megapixel + 0.002 for each further + 0.002 for a megapixel given",
        "    confidence high, 2026-02, github.com/black-forest-labs/skills",
    ]
    assert max(map(len, lines)) <= 100
    assert sum(not line.startswith(" ") for line in lines) == len(shipped().models)
    (tmp_path / FILE).write_text(NEWER + MODEL)
    assert invoke(["catalog", "show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["models"][0]["price"] == {"source": "somebody", "read_on": "2099-01-01", "per_image": "1"}


def test_the_command_checks_a_catalog(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(NEWER + MODEL)
    assert invoke(["catalog", "check", str(file)]) == 0
    assert "a catalog of 2099-01-01, newer than" in capsys.readouterr().out
    file.write_text(NEWER + MODEL.replace("kind", "sort"))
    with pytest.raises(CatalogError, match=r"models\.m\.sort is not known"):
        invoke(["catalog", "check", str(file)])


def test_the_command_says_price_by_price_what_every_kind_of_amount_is() -> None:
    from kleinbild.cli.catalog import UNITS

    amounts = {name for name in PriceSettings.model_fields if name.startswith(("per_", "first_"))}
    assert set(UNITS) == amounts


def test_the_catalog_is_of_kinds_that_there_are() -> None:
    kinds = {model.kind for model in shipped().models}
    assert kinds == set(PROVIDER_KINDS) - {"local"}
    assert isinstance(shipped(), Catalog)
    assert Path(catalog.__file__).with_name(FILE).exists()
