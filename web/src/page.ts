/** The page: takes photos, shows and keeps what the model says about them. */

import { byId, make } from "./elements";
import { photoName } from "./exporting";
import { History, HistoryError, type Kept } from "./history";
import { HistoryView } from "./historyView";
import { chosenLanguage, LANGUAGES, Speech, type Words } from "./language";
import { drawMap, drawPixels, thumbnailOf } from "./overlay";
import { findPlace } from "./place";
import { MOST_LEAVES, pooled } from "./pooling";
import type { Seen } from "./predictor";
import { problemOf, requireModernBrowser } from "./problems";
import { openRecogniser, seeAnyFormat, type Recogniser } from "./recogniser";
import { isNeeded, ReleaseFiles, type Release } from "./release";
import { plantView, resultView } from "./resultView";
import { historyName, pageFolder, takeOver } from "./scope";
import { send } from "./sending";
import { readSettings, writeSettings } from "./settings";
import { connectSettings, showSettings } from "./settingsView";
import type { Texts } from "./texts/en";
import { followUpdates } from "./updates";
import type { Prediction } from "./verdict";

type Message = readonly [keyof Texts, Readonly<Record<string, string | number>>?];

const WAITED_FILES = ["model", "model.json"];
const RUNTIME = "runtime/";
const MODEL_ID_DIGITS = 12;

class Page {
  private readonly settings = readSettings();
  private words: Words = { languages: {} };
  private speech = this.speechOf();
  private recogniser: Promise<Recogniser>;
  private arrived = 0;
  private history: History | null = null;
  private historyView: HistoryView | null = null;
  private plant: { id: string; leaves: Prediction[] } = { id: "", leaves: [] };
  private shown: { seen: Seen; classes: readonly string[] } | null = null;
  private status: Message | null = ["loading"];
  private isProblem = false;
  /** What holds until the page closes, and what concerns the last photo. */
  private readonly lasting: Message[] = [];
  private note: Message[] = [];
  private busy = 0;
  private turn: Promise<unknown> = Promise.resolve();

  constructor(
    readonly release: Release,
    private readonly base: string,
  ) {
    this.recogniser = this.opened();
    this.connect();
    this.draw();
    void this.begin();
  }

  async see(photo: Blob): Promise<Seen> {
    return seeAnyFormat(await this.recogniser, photo);
  }

  async engine(): Promise<Recogniser["engine"]> {
    return (await this.recogniser).engine;
  }

  private async begin(): Promise<void> {
    const files = new ReleaseFiles(this.release, this.base);
    const words = files.json("words.json").then((found) => found as Words).catch(() => this.words);
    if (await takeOver(this.base)) {
      Object.assign(this.settings, readSettings());
      showSettings(this.settings);
    }
    this.words = await words;
    this.speech = this.speechOf();
    try {
      this.history = await History.open(historyName(this.base));
      this.historyView = new HistoryView(this.history, this.speech);
    } catch {
      this.lasting.push(["error_none"]);
    }
    this.draw();
    // The files of the model come first: the service worker finds them in the cache then, and fetches none twice.
    await this.recogniser.catch(() => undefined);
    const canKeep = await followUpdates(this.release, {
      ready: (take) => {
        byId("update-bar").hidden = false;
        byId("update").onclick = take;
      },
    });
    if (canKeep) return;
    this.lasting.push(["error_noOffline"]);
    this.drawNote();
  }

  private async opened(): Promise<Recogniser> {
    this.arrived = 0;
    try {
      requireModernBrowser();
      const recogniser = await openRecogniser({ release: this.release, base: this.base }, (bytes) => {
        this.arrived += bytes;
        this.drawProgress();
      });
      this.setStatus(["ready"]);
      this.drawAbout(recogniser);
      return recogniser;
    } catch (error) {
      this.setStatus([problemOf(error, "error_model")], true);
      throw error;
    }
  }

  private connect(): void {
    const language = byId<HTMLSelectElement>("language");
    for (const [code, { name }] of Object.entries(LANGUAGES)) language.append(make("option", name, { value: code, lang: code }));
    language.onchange = () => {
      this.settings.language = language.value;
      writeSettings(this.settings);
      this.speech = this.speechOf();
      this.draw();
    };
    for (const [id, isLeaf] of [["photo-input", false], ["gallery-input", false], ["leaf-input", true]] as const) {
      const input = byId<HTMLInputElement>(id);
      input.onchange = () => {
        const file = input.files?.[0];
        // Emptied, so that the same photo can be chosen again.
        if (file) void this.take(file, isLeaf).finally(() => (input.value = ""));
      };
    }
    byId("photo-input").addEventListener("cancel", () => {
      if (!this.busy) this.setStatus(["error_camera"], true);
    });
    const toggle = byId("map-toggle");
    toggle.onclick = () => {
      const map = byId("map");
      map.hidden = !map.hidden;
      toggle.setAttribute("aria-pressed", String(!map.hidden));
    };
    connectSettings(this.settings, (key) => this.speech.text(key));
  }

  /** One photo after the other; a second one that comes meanwhile waits. */
  private take(file: Blob, isLeaf: boolean): Promise<void> {
    this.busy += 1;
    const turn = this.turn.then(() => this.judge(file, isLeaf)).finally(() => (this.busy -= 1));
    this.turn = turn;
    return turn;
  }

  private async judge(file: Blob, isLeaf: boolean): Promise<void> {
    this.note = [];
    this.drawNote();
    const id = randomId();
    const at = new Date().toISOString();
    const place = this.settings.place ? findPlace() : Promise.resolve(null);
    try {
      const recogniser = await this.reopened();
      this.setStatus(["looking"]);
      const found = await seeAnyFormat(recogniser, file);
      if (!isLeaf || this.plant.leaves.length >= MOST_LEAVES) this.plant = { id, leaves: [] };
      this.plant.leaves.push(found.prediction);
      this.shown = { seen: found, classes: recogniser.manifest.classes };
      this.setStatus(null);
      this.drawShown();
      byId("card").scrollIntoView({ block: "start" });
      const { classes, weights_sha256 } = recogniser.manifest;
      const { probabilities, ...rest } = found.prediction;
      await this.keep(
        {
          ...rest,
          id,
          at,
          probabilities: Object.fromEntries(classes.map((name, i) => [name, probabilities[i]!])),
          plant: this.plant.id,
          place: await place,
          model: weights_sha256.slice(0, MODEL_ID_DIGITS),
          photo: photoName(at, id, file.type),
          thumbnail: await thumbnailOf(byId<HTMLCanvasElement>("seen")),
        },
        file,
      );
    } catch (error) {
      this.setStatus([problemOf(error, "error_other")], true);
    }
  }

  private async keep(answer: Kept, photo: Blob): Promise<void> {
    if (this.settings.place && !answer.place) this.tell(["placeNone"]);
    try {
      await this.history?.add(answer, photo);
      await this.historyView?.refresh();
      // Without this a browser may clear the history when storage is short.
      await navigator.storage?.persist?.().catch(() => false);
    } catch (error) {
      this.tell([error instanceof HistoryError && error.problem === "full" ? "error_full" : "error_none"]);
    }
    const { send: isOn, address } = this.settings;
    if (!isOn || !address) return;
    const failure = await send(address, answer, photo);
    this.tell(failure ? ["sendFailed", { address, reason: failure }] : ["sent", { address }]);
  }

  /** Tries once more to open a model that could not be opened. */
  private async reopened(): Promise<Recogniser> {
    try {
      return await this.recogniser;
    } catch {
      this.setStatus(["loading"]);
      this.recogniser = this.opened();
      return this.recogniser;
    }
  }

  private speechOf(): Speech {
    return new Speech(chosenLanguage(this.settings.language, navigator.languages), this.words);
  }

  private setStatus(status: Message | null, isProblem = false): void {
    [this.status, this.isProblem] = [status, isProblem];
    this.drawStatus();
  }

  private tell(message: Message): void {
    this.note.push(message);
    this.drawNote();
  }

  private draw(): void {
    const { speech } = this;
    document.documentElement.lang = speech.language;
    byId<HTMLSelectElement>("language").value = speech.language;
    document.documentElement.dir = speech.direction;
    for (const each of document.querySelectorAll<HTMLElement>("[data-text]")) {
      each.textContent = speech.text(each.dataset["text"] as keyof Texts);
    }
    byId("seen").setAttribute("aria-label", speech.text("seenAlt"));
    byId("map").setAttribute("aria-label", speech.text("mapAlt"));
    this.drawStatus();
    this.drawShown();
    this.drawNote();
    void this.recogniser.then((recogniser) => this.drawAbout(recogniser)).catch(() => undefined);
    void this.historyView?.refresh(speech);
  }

  private drawStatus(): void {
    const status = byId("status");
    status.replaceChildren();
    if (!this.status) return;
    const text = make("p", this.speech.text(...this.status), this.isProblem ? { class: "problem", "data-testid": "problem" } : {});
    status.append(text);
    if (this.status[0] !== "loading") return;
    status.append(make("progress", "", { max: String(this.awaitedBytes()), "aria-label": this.speech.text("loading") }));
    this.drawProgress();
  }

  private drawProgress(): void {
    const bar = byId("status").querySelector("progress");
    if (bar && this.arrived) bar.value = this.arrived;
  }

  private awaitedBytes(): number {
    const awaited = Object.entries(this.release.files).filter(
      ([logical, file]) => isNeeded(file) && (WAITED_FILES.includes(logical) || logical.startsWith(RUNTIME)),
    );
    return awaited.reduce((sum, [, { bytes }]) => sum + bytes, 0);
  }

  private drawShown(): void {
    const { shown, speech } = this;
    byId("card").hidden = byId("another").hidden = !shown;
    if (!shown) return;
    const { prediction, view, attention } = shown.seen;
    drawPixels(byId<HTMLCanvasElement>("seen"), view);
    byId("map-toggle").hidden = !attention;
    if (attention) drawMap(byId<HTMLCanvasElement>("map"), attention, view);
    else byId("map").hidden = true;
    byId("result").replaceChildren(...resultView(prediction, shown.classes, speech));
    const { leaves } = this.plant;
    const plant = byId("plant");
    plant.hidden = leaves.length < 2;
    plant.replaceChildren(...(leaves.length < 2 ? [] : plantView(leaves.length, pooled(leaves, shown.classes), speech)));
    if (leaves.length >= MOST_LEAVES) plant.append(make("p", speech.text("plantFull", { most: MOST_LEAVES })));
  }

  private drawNote(): void {
    byId("note").replaceChildren(...[...this.lasting, ...this.note].map((message) => make("p", this.speech.text(...message))));
  }

  private drawAbout({ manifest, engine }: Recogniser): void {
    const threads = engine.threads > 1 ? ` × ${engine.threads}` : "";
    byId("about").textContent = this.speech.text("about", {
      model: `${manifest.model} ${manifest.weights_sha256.slice(0, MODEL_ID_DIGITS)}`,
      release: this.release.release,
      engine: engine.name + threads,
    });
  }
}

/** 32 hex digits; `crypto.randomUUID` exists only on pages with https. */
function randomId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (each) => each.toString(16).padStart(2, "0")).join("");
}

export async function startPage(): Promise<void> {
  const release = JSON.parse(byId("release").textContent) as Release;
  const page = new Page(release, pageFolder());
  // For tests and for the curious; README.md describes it.
  Object.assign(window, {
    agridistill: {
      release: release.release,
      engine: () => page.engine(),
      see: (photo: Blob) => page.see(photo),
      predict: async (photo: Blob): Promise<Prediction> => (await page.see(photo)).prediction,
    },
  });
}
