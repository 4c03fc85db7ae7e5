package config

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

func TestSizeText(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "1B": 1, "1023B": 1023, "256KiB": 256 * KiB, "1024KiB": MiB, "8 MiB": 8 * MiB, "10GiB": 10 * GiB, "2TiB": 2 * TiB,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "5", "-1B", "+1B", "1.5GiB", "1MB", "1kib", "KiB", "9223372036854775807KiB", "1e3B", "1_0B"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("parseSize(%q) = %d; want an error", text, got)
		}
	}
}

func TestDurationText(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0s": 0, "5ms": 5 * time.Millisecond, "60s": time.Minute, "1h30m": 90 * time.Minute, "30d": 30 * day,
		"1d12h": 36 * time.Hour, "0d": 0,
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("ParseDuration(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "5", "0", "-5s", "+5s", "5 s", "d", "1.5d", "1d-1h", "1d0", "5sec", "999999999d", "106751d24h"} {
		if got, err := ParseDuration(text); err == nil {
			t.Errorf("ParseDuration(%q) = %v; want an error", text, got)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0s", time.Minute: "1m", time.Hour: "1h", 90 * time.Minute: "1h30m", 30 * day: "30d", 10 * time.Second: "10s",
		day + time.Hour: "1d1h", 70 * time.Second: "1m10s", time.Hour + time.Second: "1h0m1s",
	} {
		if got := formatDuration(d); got != want {
			t.Errorf("formatDuration(%d) = %q; want %q", d, got, want)
		}
	}
}

// TestTextRoundTrip: what is written out is read back as the same value.
func TestTextRoundTrip(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		n := rnd.Int64N(math.MaxInt64) >> rnd.IntN(63)
		if got, err := parseSize(Size(n).String()); err != nil || got != Size(n) {
			t.Fatalf("seed %d: size %d is written %q, read %d, %v", seed, n, Size(n), got, err)
		}
		d := time.Duration(n)
		if got, err := ParseDuration(formatDuration(d)); err != nil || got != d {
			t.Fatalf("seed %d: duration %d is written %q, read %d, %v", seed, d, formatDuration(d), got, err)
		}
	}
}

func FuzzText(f *testing.F) {
	for _, text := range []string{"0", "256KiB", "30d", "1d12h", "5ms", "a=b,c=d", "*.*,!app.log", "true", "256"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, k := range keys() {
			cfg := new(Config)
			if decodeText(k.field(cfg), text) != nil {
				continue
			}
			again := new(Config)
			if err := decodeText(k.field(again), encode(k.field(cfg))); err != nil {
				t.Fatalf("%s: %q is read but not read back: %v", k.name, text, err)
			}
			if encode(k.field(again)) != encode(k.field(cfg)) {
				t.Fatalf("%s: %q becomes %q", k.name, encode(k.field(cfg)), encode(k.field(again)))
			}
		}
	})
}
