/** What the user chose, in localStorage; where that is closed, until the page closes. */

import { ownName, pageFolder } from "./scope";

export interface Settings {
  language: string;
  place: boolean;
  send: boolean;
  address: string;
}

const DEFAULTS: Settings = { language: "", place: false, send: false, address: "" };

export function readSettings(): Settings {
  const found: Settings = { ...DEFAULTS };
  try {
    const stored = JSON.parse(localStorage.getItem(ownName(pageFolder())) ?? "{}") as Partial<Record<keyof Settings, unknown>>;
    if (typeof stored.language === "string") found.language = stored.language;
    if (typeof stored.address === "string") found.address = stored.address;
    found.place = stored.place === true;
    found.send = stored.send === true;
  } catch {
    // Closed or damaged: the defaults.
  }
  return found;
}

export function writeSettings(settings: Settings): void {
  try {
    localStorage.setItem(ownName(pageFolder()), JSON.stringify(settings));
  } catch {
    // They stay until the page closes.
  }
}
