// The microphone's samples at another rate, a tenth of a second at a time: a windowed sinc, one set of taps for each
// phase between input samples.

const HALF_WIDTH = 16; // zero crossings of the sinc on either side, at the lower of the two rates
const PASS = 0.92; // of the band is kept

class Resampler extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    const divisor = gcd(sampleRate, processorOptions.rate);
    this.up = processorOptions.rate / divisor;
    this.down = sampleRate / divisor;
    this.chunk = processorOptions.rate / 10;
    const cutoff = Math.min(1, processorOptions.rate / sampleRate) * PASS;
    this.reach = Math.ceil(HALF_WIDTH / cutoff);
    this.taps = Array.from({ length: this.up }, (_, phase) => this.makeTaps(phase / this.up, cutoff));
    this.held = new Float32Array(this.reach); // input that is still needed; silence before the first sample
    this.place = this.reach * this.up; // of the next output sample, in 1/up of an input sample from the start of `held`
    this.out = [];
    this.running = true;
    this.port.onmessage = () => {
      this.push(new Float32Array(this.reach + 1)); // what the last samples need behind them
      this.send();
      this.running = false;
      this.port.postMessage(null);
    };
  }

  makeTaps(fraction, cutoff) {
    const taps = new Float32Array(2 * this.reach + 1);
    let sum = 0;
    for (let index = 0; index < taps.length; index++) {
      const distance = index - this.reach - fraction;
      const x = Math.PI * cutoff * distance;
      const hann = Math.abs(distance) > this.reach ? 0 : 0.5 + 0.5 * Math.cos((Math.PI * distance) / (this.reach + 1));
      sum += taps[index] = (x === 0 ? 1 : Math.sin(x) / x) * hann;
    }
    return taps.map((tap) => tap / sum);
  }

  push(input) {
    const held = new Float32Array(this.held.length + input.length);
    held.set(this.held);
    held.set(input, this.held.length);
    for (;;) {
      const centre = Math.floor(this.place / this.up);
      if (centre + this.reach >= held.length) break;
      const taps = this.taps[this.place % this.up];
      let sum = 0;
      for (let index = 0; index < taps.length; index++) sum += taps[index] * held[centre - this.reach + index];
      this.out.push(sum);
      this.place += this.down;
    }
    const spent = Math.max(0, Math.floor(this.place / this.up) - this.reach);
    this.held = held.slice(spent);
    this.place -= spent * this.up;
  }

  send() {
    if (!this.out.length) return;
    const samples = Float32Array.from(this.out);
    this.out = [];
    this.port.postMessage(samples, [samples.buffer]);
  }

  process([input]) {
    if (this.running && input.length) {
      const mono = new Float32Array(input[0].length);
      for (const channel of input) for (let index = 0; index < mono.length; index++) mono[index] += channel[index] / input.length;
      this.push(mono);
      if (this.out.length >= this.chunk) this.send();
    }
    return this.running;
  }
}

function gcd(one, other) {
  return other ? gcd(other, one % other) : one;
}

registerProcessor("resampler", Resampler);
