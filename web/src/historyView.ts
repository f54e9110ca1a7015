/** The list of kept answers, with its buttons. */

import { byId, download, make } from "./elements";
import { toCsv, toJson, toZip } from "./exporting";
import type { History, Kept } from "./history";
import type { Speech } from "./language";
import { headlineOf } from "./resultView";

export class HistoryView {
  private answers: Kept[] = [];
  private urls: string[] = [];
  private readonly details = byId<HTMLDetailsElement>("history");
  private readonly list = byId("history-list");
  private readonly status = byId("history-status");

  constructor(
    private readonly history: History,
    private speech: Speech,
  ) {
    const button = (name: string): HTMLElement => this.details.querySelector<HTMLElement>(`[data-testid="${name}"]`)!;
    button("export-csv").onclick = () => this.export("answers.csv", () => new Blob([toCsv(this.answers)], { type: "text/csv" }));
    button("export-json").onclick = () =>
      this.export("answers.json", () => new Blob([toJson(this.answers)], { type: "application/json" }));
    button("export-zip").onclick = () => this.export("photos.zip", () => toZip(this.answers, this.history));
    button("delete-all").onclick = () => void this.clear();
    this.details.addEventListener("toggle", () => this.draw());
  }

  async refresh(speech = this.speech): Promise<void> {
    this.speech = speech;
    this.answers = await this.history.all();
    byId("history-count").textContent = this.answers.length ? `(${speech.number(this.answers.length)})` : "";
    byId("history-actions").hidden = !this.answers.length;
    this.draw();
  }

  private draw(): void {
    for (const url of this.urls.splice(0)) URL.revokeObjectURL(url);
    this.list.replaceChildren();
    if (!this.details.open) return;
    if (!this.answers.length) this.list.append(make("li", this.speech.text("historyEmpty")));
    else this.list.append(...this.answers.map((answer) => this.item(answer)));
  }

  private item(answer: Kept): HTMLElement {
    const item = make("li", "");
    const image = make("img", "", { alt: "", width: "64", height: "64", loading: "lazy" }) as HTMLImageElement;
    if (answer.thumbnail) {
      image.src = URL.createObjectURL(answer.thumbnail);
      this.urls.push(image.src);
    }
    const date = this.speech.date(answer.at);
    const place = answer.place && `${answer.place.latitude}, ${answer.place.longitude}`;
    const text = make("div", "");
    const share = answer.verdict === "answer" ? ` · ${this.speech.percent(answer.probability)}` : "";
    text.append(make("p", headlineOf(answer, this.speech) + share, { class: "name", dir: "auto" }), make("p", date, { class: "quiet" }));
    if (place) text.append(make("p", place, { class: "quiet", dir: "ltr" }));
    const remove = make("button", this.speech.text("delete"), {
      type: "button",
      class: "danger",
      "aria-label": this.speech.text("deleteOne", { date }),
    });
    remove.onclick = () => void this.remove(answer.id);
    item.append(image, text, remove);
    return item;
  }

  private async remove(id: string): Promise<void> {
    await this.history.remove(id);
    await this.refresh();
    // The button that had the focus is gone.
    this.details.querySelector("summary")?.focus();
  }

  private async clear(): Promise<void> {
    if (!confirm(this.speech.text("deleteAllSure"))) return;
    await this.history.clear();
    await this.refresh();
    this.details.querySelector("summary")?.focus();
  }

  private async export(name: string, content: () => Blob | Promise<Blob>): Promise<void> {
    this.status.textContent = "";
    try {
      download(await content(), name);
    } catch {
      this.status.textContent = this.speech.text("exportFailed");
    }
  }
}
