/** The switches for the place of photos and for sending, and the button that installs the page. */

import { byId } from "./elements";
import { findPlace } from "./place";
import { checkedAddress } from "./sending";
import { writeSettings, type Settings } from "./settings";
import type { Texts } from "./texts/en";

export function showSettings(settings: Settings): void {
  byId<HTMLInputElement>("place").checked = settings.place;
  byId<HTMLInputElement>("send").checked = settings.send;
  byId<HTMLInputElement>("address").value = settings.address;
}

export function connectSettings(settings: Settings, text: (key: keyof Texts) => string): void {
  const [place, sending] = [byId<HTMLInputElement>("place"), byId<HTMLInputElement>("send")];
  const [address, status] = [byId<HTMLInputElement>("address"), byId("settings-status")];
  showSettings(settings);
  place.onchange = async () => {
    settings.place = place.checked;
    writeSettings(settings);
    // Asked now, so that the browser's question does not come between two photos.
    status.textContent = place.checked && !(await findPlace()) ? text("placeNone") : "";
  };
  sending.onchange = address.onchange = () => {
    const checked = checkedAddress(address.value);
    const isMissing = checked === null && (sending.checked || address.value !== "");
    status.textContent = isMissing ? text("sendNoAddress") : "";
    sending.checked &&= checked !== null;
    settings.address = checked ?? "";
    settings.send = sending.checked;
    writeSettings(settings);
  };
  const install = byId("install");
  addEventListener("beforeinstallprompt", (event) => {
    event.preventDefault();
    install.hidden = false;
    install.onclick = () => {
      install.hidden = true;
      void (event as Event & { prompt(): Promise<void> }).prompt();
    };
  });
}
