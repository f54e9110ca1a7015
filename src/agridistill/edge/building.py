"""Builds the agent from its settings, and runs each of its parts in a thread."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agridistill.edge.agent import BROKER, Agent, Listeners, Stores
from agridistill.edge.alerts import Plots
from agridistill.edge.alerts.rules import ill_classes, why_all_is_ill
from agridistill.edge.delivery.broker import BrokerAccess, Connection
from agridistill.edge.delivery.link import BrokerLink
from agridistill.edge.delivery.outputs import Deliverer, Webhook
from agridistill.edge.events import number_of
from agridistill.edge.keep import Keeper, KeepSettings, KeptPhotos, Upload
from agridistill.edge.network import basic_login, public_name, split_url
from agridistill.edge.page import Page, PageServer, page_address
from agridistill.edge.settings import PageSettings, WatchSettings, read_secret, require_valid
from agridistill.edge.sources import (
    STILL_AFTER_S,
    LatestFrame,
    SourceSettings,
    open_source,
    source_identity,
    source_kind,
)
from agridistill.edge.state import HISTORY_FILE, AgentState
from agridistill.edge.store.history import History
from agridistill.edge.store.outbox import Outbox
from agridistill.edge.updates.release import read_trusted_keys
from agridistill.edge.updates.slots import ModelSlots
from agridistill.edge.updates.updater import Updater, UpdateWorker
from agridistill.edge.verdict import CurrentModel, Decider, require_model
from agridistill.errors import ConfigError
from agridistill.preprocess import enough_pixels
from agridistill.runtime.backends import open_artefact
from agridistill.runtime.predictor import Predictor
from agridistill.storage import only_one

logger = logging.getLogger(__name__)

Worker = Callable[[threading.Event], None]  # runs in a thread until the event is set
_JOIN_S = 10.0
# Longer than the folder source waits for a photo that may still be written to.
_IDLE_S = 3.0
# A camera counts as stuck after this number of pauses between pictures without a change, even at one picture an hour.
_STILL_PICTURES = 3.5
# With `once`, how long a receiver may accept no message before the agent ends; its messages stay on the disk.
_GIVE_UP_S = 30.0


def watch(
    settings: WatchSettings,
    state: Path,
    stop: threading.Event,
    listeners: Listeners | None = None,
    *,
    once: bool = False,
    by_user: Callable[[], bool] = lambda: False,
    command: Sequence[str] = (),
) -> AgentState:
    """Runs the agent in the calling thread until `stop` is set, and returns its last state.

    Args:
        state: folder for detections, unsent messages and models; created if missing. Two agents cannot share it.
        once: also end when the folder or video has no new photos and all messages are delivered. Messages that
            no receiver accepts for 30 s are left for the next run.
        by_user: returns whether the user set `stop` with Ctrl-C; `AgentState.stopped` records it.
        command: words after `agridistill watch` that start this agent again, without secrets; `status` prints them.

    Raises:
        AgriDistillError: a setting cannot be used, or a part of the agent failed.
    """
    listeners = listeners or Listeners()
    require_valid(settings)
    # Checked before anything is created: a mistyped name must not leave a state folder behind.
    source_kind(settings.source)
    model = require_model(settings.model or Path())
    # The agent would watch a state folder inside the photos: it would classify, or delete, the golden photos there.
    photos = None if "://" in settings.source else Path(settings.source)
    if photos is not None and photos.is_dir() and state.resolve().is_relative_to(photos.resolve()):
        raise ConfigError(
            "a state folder outside the folder of photos", f"'{state}' inside '{photos}'", "choose another --state"
        )
    if state.exists() and not state.is_dir():
        raise ConfigError("a folder for the agent's state", f"the file '{state}'", "choose another --state")
    state.mkdir(parents=True, exist_ok=True)
    with only_one(state / "agent.lock", "agent's state"), contextlib.ExitStack() as stack:
        stores = _stores(settings, state, stack)
        slots = ModelSlots(state / "models", model)
        connection = Connection(settings.broker.host, settings.broker.port) if settings.broker else None
        keeper = _keeper(settings, stores, stack)
        agent = _agent(settings, stores, slots, listeners, connection, keeper, stack, once=once, command=command)
        workers = _workers(settings, stores, slots, agent, connection)
        queues: list[Outbox | KeptPhotos] = [*stores.outboxes.values()]
        if keeper is not None and settings.keep is not None and settings.keep.upload:
            workers.append(_uploader(settings.keep, keeper.photos).run)
            queues.append(keeper.photos)
        if settings.page:
            listeners.page(_open_page(settings.page, settings.healthy, state, agent, stack))
        with _running(workers, stop) as failures:
            agent.run(stop)
            if once:
                _deliver_the_rest(queues, stop, agent.report)
            agent.stopped = by_user() and not failures
            agent.report(now=True)
        if failures:
            raise failures[0]
        return agent.state


def _stores(settings: WatchSettings, state: Path, stack: contextlib.ExitStack) -> Stores:
    files = {BROKER: "outbox.sqlite", "webhook": "webhook.sqlite", "command": "command.sqlite"}
    return Stores(
        folder=state,
        history=stack.enter_context(History(state / HISTORY_FILE, settings.history, source_identity(settings.source))),
        outboxes={
            receiver: stack.enter_context(Outbox(state / file, settings.outbox))
            for receiver, file in files.items()
            if getattr(settings, receiver) is not None
        },
    )


def _keeper(settings: WatchSettings, stores: Stores, stack: contextlib.ExitStack) -> Keeper | None:
    if (options := settings.keep) is None:
        return None
    folder = options.folder or stores.folder / "kept"
    photos = None if "://" in settings.source else Path(settings.source).resolve()
    if photos is not None and photos.is_dir() and folder.resolve().is_relative_to(photos):
        got, remedy = f"'{folder}' inside '{photos}'", "choose another folder"
        raise ConfigError("folder in [keep] outside the folder of photos", got, remedy)
    lock = folder / ".lock"
    # An empty mount point must not count as if people had taken all photos, and must not be filled. Without a folder
    # in the settings the photos are on the history's disk.
    known = stores.history.kept_photos() if options.folder and not lock.exists() else 0
    is_away = known > 0
    try:
        if is_away:
            line = (
                "'%s' holds none of the %s photos kept before, and no new ones are kept: mount its disk and start the "
            )
            line += "agent again, or, if you took them, create the empty file '%s'"
            logger.warning(line, folder, f"{known:,}", lock)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(only_one(lock, "folder of kept photos"))
        kept = KeptPhotos(
            stores.history,
            folder,
            int(1e6 * options.max_megabytes),
            location=options.location,
            delete_uploaded=options.after_upload == "delete" and bool(options.upload),
            is_away=is_away,
        )
    except OSError as error:
        got = f"'{folder}' ({error.strerror or error})"
        raise ConfigError("a folder for kept photos that can be written", got, "correct folder in [keep]") from None
    return Keeper(kept, options)


def _uploader(options: KeepSettings, photos: KeptPhotos) -> Deliverer:
    login = None
    if options.user:
        login = basic_login(options.user, read_secret(options.password_file, "AGRIDISTILL_KEEP_PASSWORD") or "")
    elif token := read_secret(options.token_file, "AGRIDISTILL_KEEP_TOKEN"):
        login = f"Bearer {token}"
    upload = Upload(photos, options.upload, login, options.ca_file)
    return Deliverer(photos, upload, upload.name, ("a photo", "photos"))


def _agent(
    settings: WatchSettings,
    stores: Stores,
    slots: ModelSlots,
    listeners: Listeners,
    connection: Connection | None,
    keeper: Keeper | None,
    stack: contextlib.ExitStack,
    *,
    once: bool,
    command: Sequence[str],
) -> Agent:
    history = stores.history

    def plots(classes: tuple[str, ...]) -> Plots:
        ill = ill_classes(classes, settings.healthy)
        rules = settings.rules_for(ill)
        plots = Plots(history, rules, classes, view_s=60 * settings.window_minutes, healthy=settings.healthy)
        for notice in filter(None, (plots.cannot_warn, why_all_is_ill(rules, ill, classes))):
            logger.warning("%s", notice)
        return plots

    def create(path: Path) -> Decider:
        predictor = Predictor(open_artefact(path, threads=settings.threads))
        for rule in settings.rules:
            rule.indices(predictor.manifest.classes)
        ill_classes(predictor.manifest.classes, settings.healthy)
        return Decider(predictor, settings.quality, device=settings.device_name, source=source_name)

    # The source is created after the model, whose input size it needs; the model needs the source's name before.
    is_url = "://" in settings.source
    source_name = public_name(split_url(settings.source)) if is_url else settings.source
    model = stack.enter_context(CurrentModel(slots, create))
    reported = set[str]()

    def seen(identity: str) -> bool:
        decided_by = history.decided_by(identity)
        if decided_by and decided_by not in {model.decider.model_id, *reported}:
            reported.add(decided_by)
            logger.warning(
                "another model (%s) has already classified some of these photos, and its answers stay; to classify "
                "them again with this model, choose a new state folder with --state",
                decided_by,
            )
        return decided_by is not None

    source = open_source(
        settings.source,
        settings=SourceSettings(
            plot=settings.plot,
            shorter_side=enough_pixels(model.decider.manifest.preprocessing),
            every_s=settings.every_s,
            after=settings.after,
            time=settings.time,
            username=os.environ.get("AGRIDISTILL_SOURCE_USERNAME") or None,
            password=os.environ.get("AGRIDISTILL_SOURCE_PASSWORD") or None,
            ca_file=settings.ca_file,
        ),
        seen=seen,
        bad=history.mark,
        attempts=history,
    )
    if once and source.live:
        raise ConfigError("a folder or a video file with --once", f"'{source.name}', which never ends", "omit --once")
    frames = LatestFrame(
        source,
        still_after_s=max(STILL_AFTER_S, _STILL_PICTURES * settings.every_s),
        end_after_s=_IDLE_S if once else None,
    )
    return Agent(
        settings.device_name,
        frames,
        model,
        plots,
        stores,
        keep_thumbnails=settings.keeps_thumbnails,
        keep=keeper,
        listeners=listeners,
        connection=connection,
        command=command,
    )


def _workers(
    settings: WatchSettings, stores: Stores, slots: ModelSlots, agent: Agent, connection: Connection | None
) -> list[Worker]:
    workers: list[Worker] = []
    if settings.webhook is not None:
        token = read_secret(settings.webhook.token_file, "AGRIDISTILL_WEBHOOK_TOKEN")
        webhook = Webhook(settings.webhook.url, token)
        workers.append(Deliverer(stores.outboxes["webhook"], webhook, webhook.name).run)
    if settings.command is not None:
        command = settings.command
        # A missing program must not keep the agent from watching.
        if not command.can_be_run:
            logger.warning(
                "%s is not found or not executable: its alerts wait in the outbox until it can be run", command.name
            )
        workers.append(Deliverer(stores.outboxes["command"], command, command.name).run)
    updates = None
    if (options := settings.updates) is not None:
        keys = read_trusted_keys(options.keys)
        updater = Updater(slots, keys, channel=options.channel, ca_file=options.ca_file, threads=settings.threads)
        updates = UpdateWorker(options.source, 3600 * options.every_hours, updater, agent.model_changed.set)
        workers.append(updates.run)
    if settings.broker is not None and connection is not None:
        password = read_secret(settings.broker.password_file, "AGRIDISTILL_MQTT_PASSWORD")
        page = settings.page
        link = BrokerLink(
            BrokerAccess(settings.broker, settings.device_name, password),
            stores.outboxes[BROKER],
            lambda: agent.state,
            lambda: agent.plots.health,
            connection=connection,
            updates=updates,
            photos=None if "://" in settings.source else Path(settings.source),
            plot=settings.plot,
            page_url=page_address(page.host, page.port, (connection.host, connection.port)) if page else lambda: None,
        )
        workers.append(link.run)
    return workers


def _open_page(
    page: PageSettings, healthy: Sequence[str], state: Path, agent: Agent, stack: contextlib.ExitStack
) -> str:
    history = stack.enter_context(History(state / HISTORY_FILE, read_only=True))
    token = read_secret(page.token_file, "AGRIDISTILL_PAGE_TOKEN")
    served = Page(history, lambda: agent.state, lambda: agent.plots.health, healthy, page.app)
    return stack.enter_context(PageServer(served, token, page.host, page.port)).address


@contextlib.contextmanager
def _running(workers: Sequence[Worker], stop: threading.Event) -> Iterator[list[BaseException]]:
    """Runs workers in threads, and yields the list of their exceptions; the first one sets `stop` to end the agent."""
    ending, failures = threading.Event(), list[BaseException]()

    def guarded(worker: Worker) -> None:
        try:
            worker(ending)
        except BaseException as error:  # raised again by `watch`
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


def _deliver_the_rest(
    outboxes: Sequence[Outbox | KeptPhotos], stop: threading.Event, report: Callable[[], None]
) -> None:
    """Waits until all outboxes are empty, `stop` is set, or nothing has been delivered for 30 s."""
    before, since = -1, time.monotonic()
    while not stop.wait(0.05):
        report()
        counts = [outbox.counts() for outbox in outboxes]
        waiting = sum(sum(one.waiting.values()) for one in counts)
        if not waiting:
            return
        if (delivered := sum(one.delivered for one in counts)) != before:
            before, since = delivered, time.monotonic()
        elif time.monotonic() - since > _GIVE_UP_S:
            logger.warning(
                "%s could not be delivered; the next run of the agent tries again", number_of(waiting, "message")
            )
            return
