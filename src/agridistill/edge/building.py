"""From settings to a running agent: what is made, in which order, and who runs in which thread."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agridistill.edge.agent import Agent, Hooks, Stores
from agridistill.edge.alerts.defaults import ill_classes, why_all_is_ill
from agridistill.edge.alerts.lifecycle import AlertMessage
from agridistill.edge.alerts.plots import Plots
from agridistill.edge.broker_link import BrokerLink
from agridistill.edge.delivery.outputs import Command, Deliverer, Webhook
from agridistill.edge.events import AgentState, Detection
from agridistill.edge.settings import PageOptions, UpdateOptions, WatchSettings, read_secret
from agridistill.edge.sources import LatestFrame, SourceSettings, open_source, require_source, source_identity
from agridistill.edge.sources.reader import STILL_AFTER_S
from agridistill.edge.status.page import PageServer
from agridistill.edge.status.state_file import HISTORY_FILE
from agridistill.edge.store.history import History
from agridistill.edge.store.outbox import Outbox
from agridistill.edge.updates.release import UpdateSettings, read_trusted_keys
from agridistill.edge.updates.slots import ModelSlots
from agridistill.edge.updates.updater import Updater, UpdateWorker
from agridistill.edge.urls import public_name, split_url
from agridistill.edge.verdict import CurrentModel, Decider, EarlierModels, Origin, require_model
from agridistill.errors import AgriDistillError, ConfigError
from agridistill.preprocess import enough_pixels
from agridistill.runtime.backends import open_artefact
from agridistill.runtime.predictor import Predictor
from agridistill.storage import only_one

logger = logging.getLogger(__name__)

# A state sent every few seconds would cost a device on a mobile network half a megabyte an hour.
_TELL_STATE_EVERY_S = 60.0
_JOIN_S = 10.0
# Longer than a photo that may still be written is waited for.
_IDLE_S = 3.0
# So many pictures without a change are a stuck camera, also where they come once an hour.
_STILL_PICTURES = 3.5
# Of `once`: a receiver that is away must not keep it for ever; what it waits for is on the disk.
_GIVE_UP_S = 30.0
_PHOTOS_WHERE_DELETED = 10_000


@dataclass(frozen=True)
class Listeners:
    """Who wants to hear of what is committed.

    Attributes:
        detection: called with each detection.
        alert: called with each message about an alert.
        page: called with the page's address once it can be opened.
    """

    detection: Callable[[Detection], None] = lambda detection: None
    alert: Callable[[AlertMessage], None] = lambda message: None
    page: Callable[[str], None] = lambda address: None


def watch(
    settings: WatchSettings,
    state: Path,
    stop: threading.Event,
    listeners: Listeners | None = None,
    *,
    once: bool = False,
    by_user: Callable[[], bool] = lambda: False,
) -> AgentState:
    """Runs the agent until `stop`.

    Args:
        settings: of the device.
        state: folder for what must not be lost; made where it is not there. One agent at a time.
        stop: set it to end in an orderly way.
        listeners: who wants to hear.
        once: ends when a source that waits has nothing more, and what waits has been delivered, or nothing could be
            for half a minute.
        by_user: whether the user at the keyboard set `stop`: the state then says so.

    Returns:
        The state at the end.

    Raises:
        AgriDistillError: something in the settings cannot be used.
    """
    listeners = listeners or Listeners()
    # Before anything is made: a mistyped name leaves no state folder.
    require_source(settings.source)
    model = require_model(settings.model or Path())
    _keep_apart(settings.source, state)
    if state.exists() and not state.is_dir():
        raise ConfigError("a folder for the state", f"the file '{state}'", "choose another --state")
    state.mkdir(parents=True, exist_ok=True)
    with only_one(state / "agent.lock", "agent's state"), contextlib.ExitStack() as stack:
        stores = _stores(settings, state, stack)
        slots = ModelSlots(state / "models", model)
        updater = _updater(settings.updates, slots, settings.threads)
        connection = (
            BrokerLink(
                settings.broker,
                settings.device_name,
                stores.detections,
                plot=settings.plot,
                photos=Path(settings.source) if "://" not in settings.source else None,
                page=settings.page,
            )
            if settings.broker and stores.detections
            else None
        )
        agent = _agent(settings, stores, slots, listeners, connection, stack, once=once)
        workers = _workers(settings, stores, agent, updater, connection)
        if settings.page:
            listeners.page(stack.enter_context(_page(settings.page, state, agent, settings.healthy)))
        with _running(workers, stop) as failures:
            agent.run(stop)
            if once:
                _deliver_the_rest(stores.outboxes, stop, agent.beat)
            agent.stopped = by_user() and not failures
            agent.beat(now=True)
        if failures:
            raise failures[0]
        return agent.state


def _keep_apart(source: str, state: Path) -> None:
    """A state within the photos would be watched itself: golden photos are no plants, and `after` would delete them.

    Raises:
        ConfigError: the state's folder is the source's, or lies in it.
    """
    if "://" not in source and Path(source).is_dir() and state.resolve().is_relative_to(Path(source).resolve()):
        raise ConfigError("a state folder outside the photos", f"'{state}' in '{source}'", "choose another --state")


def _stores(settings: WatchSettings, state: Path, stack: contextlib.ExitStack) -> Stores:
    def outbox(name: str) -> Outbox:
        return stack.enter_context(Outbox(state / f"{name}.sqlite", settings.outbox))

    limits = settings.history
    if settings.after == "delete":
        # A photo that is gone will not be asked about again.
        limits = replace(limits, photos=min(limits.photos, _PHOTOS_WHERE_DELETED))
    return Stores(
        folder=state,
        history=stack.enter_context(History(state / HISTORY_FILE, limits, source_identity(settings.source))),
        detections=outbox("outbox") if settings.broker else None,
        alerts=[
            outbox(name) for name, wanted in (("webhook", settings.webhook), ("command", settings.command)) if wanted
        ],
    )


def _agent(
    settings: WatchSettings,
    stores: Stores,
    slots: ModelSlots,
    listeners: Listeners,
    connection: BrokerLink | None,
    stack: contextlib.ExitStack,
    *,
    once: bool,
) -> Agent:
    history = stores.history

    def load(path: Path) -> Predictor:
        return Predictor(open_artefact(path, threads=settings.threads))

    def plots(classes: tuple[str, ...]) -> Plots:
        ill = ill_classes(classes, settings.healthy)
        rules = settings.rules_for(ill)
        plots = Plots(
            history,
            rules,
            classes,
            window_s=settings.window_s,
            view_s=60 * settings.window_minutes,
            healthy=settings.healthy,
        )
        for notice in filter(None, (plots.cannot_warn, why_all_is_ill(rules, ill, classes))):
            logger.warning("%s", notice)
        return plots

    def create(predictor: Predictor) -> Decider:
        for rule in settings.rules:
            rule.indices(predictor.manifest.classes)
        ill_classes(predictor.manifest.classes, settings.healthy)
        return Decider(predictor, settings.quality, origin)

    origin = Origin(settings.device_name, _source_name(settings.source))
    model = CurrentModel(slots, load, create)

    def close(kind: object, error: BaseException | None, traceback: object) -> bool:
        # A model on trial is not to blame for an orderly end, nor for a page's port that is taken.
        if error is None or isinstance(error, AgriDistillError):
            model.close()
        return False

    stack.push(close)
    earlier = EarlierModels(history.decided_by, lambda: model.decider.model_id)
    size = enough_pixels(model.decider.manifest.preprocessing)
    source = open_source(
        settings.source,
        settings=SourceSettings(
            plot=settings.plot,
            shorter_side=size,
            every_s=settings.every_s,
            after=settings.after,
            time=settings.time,
            username=os.environ.get("AGRIDISTILL_SOURCE_USERNAME") or None,
            password=os.environ.get("AGRIDISTILL_SOURCE_PASSWORD") or None,
            ca_file=settings.ca_file,
        ),
        seen=earlier.seen,
        bad=history.mark,
        attempts=history,
    )
    if once and source.live:
        raise ConfigError("a folder or a video file for --once", f"'{source.name}', which never ends", "leave it away")
    hooks = Hooks(listeners.detection, listeners.alert, connection.state if connection else lambda: None, earlier.idle)
    return Agent(
        settings.device_name,
        LatestFrame(
            source,
            still_after_s=max(STILL_AFTER_S, _STILL_PICTURES * settings.every_s),
            end_after_s=_IDLE_S if once else None,
        ),
        model,
        plots,
        stores,
        keep_thumbnails=settings.keeps_thumbnails,
        hooks=hooks,
    )


def _source_name(source: str) -> str:
    """As the source will call itself; the model's own pixels decide how it is opened, so it comes after the model."""
    return public_name(split_url(source)) if "://" in source else source


def _workers(
    settings: WatchSettings, stores: Stores, agent: Agent, updater: Updater | None, connection: BrokerLink | None
) -> list[Callable[[threading.Event], None]]:
    workers: list[Callable[[threading.Event], None]] = []
    outboxes = iter(stores.alerts)
    if settings.webhook:
        token = read_secret(settings.webhook.token_file, "AGRIDISTILL_WEBHOOK_TOKEN")
        webhook = Webhook(settings.webhook.url, token)
        workers.append(Deliverer(next(outboxes), webhook, webhook.name).run)
    if settings.command:
        command = Command(settings.command.words, settings.command.timeout_s)
        # A device that lacks its notifier had better watch than not start.
        if not command.can_be_run:
            logger.warning("%s cannot be run: alerts wait until it can", command.name)
        workers.append(Deliverer(next(outboxes), command, command.name).run)
    updates = None
    if settings.updates and updater:
        every_s = 3600 * settings.updates.every_hours
        updates = UpdateWorker(settings.updates.source, every_s, updater, agent.model_changed.set)
    if updates is not None:
        workers.append(updates.run)
    if connection is not None:
        workers.append(connection.worker(agent, updates))
    return workers


def _updater(options: UpdateOptions | None, slots: ModelSlots, threads: int) -> Updater | None:
    if options is None:
        return None
    settings = UpdateSettings(channel=options.channel, threads=threads, ca_file=options.ca_file)
    return Updater(slots, read_trusted_keys(options.keys), settings)


@contextlib.contextmanager
def _page(options: PageOptions, state: Path, agent: Agent, healthy: Sequence[str]) -> Iterator[str]:
    token = read_secret(options.token_file, "AGRIDISTILL_PAGE_TOKEN")
    with contextlib.closing(History.reading(state / HISTORY_FILE)) as history:
        server = PageServer(
            history,
            lambda: agent.state,
            host=options.host,
            port=options.port,
            token=token,
            plots=lambda: agent.plots.health,
            healthy=healthy,
        )
        server.start()
        try:
            yield server.address
        finally:
            server.stop()


@contextlib.contextmanager
def _running(
    workers: Sequence[Callable[[threading.Event], None]], stop: threading.Event
) -> Iterator[list[BaseException]]:
    """Runs workers in threads; one that fails stops the agent: half an agent must not look like a whole one."""
    ending, failures = threading.Event(), list[BaseException]()

    def guarded(worker: Callable[[threading.Event], None]) -> None:
        try:
            worker(ending)
        except BaseException as error:  # told by whoever started the agent
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=guarded, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        ending.set()
        deadline = time.monotonic() + _JOIN_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _deliver_the_rest(outboxes: Sequence[Outbox], stop: threading.Event, beat: Callable[[], None]) -> None:
    """Waits for the deliverers, as long as they get anything away."""
    before, since = -1, time.monotonic()
    while not stop.wait(0.05):
        beat()
        counts = [outbox.counts() for outbox in outboxes]
        waiting = sum(sum(one.waiting.values()) for one in counts)
        if not waiting:
            return
        if (delivered := sum(one.delivered for one in counts)) != before:
            before, since = delivered, time.monotonic()
        elif time.monotonic() - since > _GIVE_UP_S:
            logger.warning("messages that cannot be sent now: %d; they are kept for the next run", waiting)
            return
