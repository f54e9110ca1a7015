declare module "@litertjs/core/wasm/*" {
  export default function factory(options: object): Promise<unknown>;
}
