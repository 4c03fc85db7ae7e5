package stream

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestWindowAgainstAList pushes and settles at random and compares with a plain list.
func TestWindowAgainstAList(t *testing.T) {
	r := seeded(t)
	for range 200 {
		start := r.Uint64N(1000)
		w := newWindow(start, []byte{1, 2, 3, 4, 5})
		if w.sum != 0x02030405 {
			t.Fatalf("sum %08x", w.sum)
		}
		var list [][]byte // all frames ever, from start+1 on
		settled := 0
		for range r.IntN(300) {
			if r.IntN(2) == 0 {
				data := append(w.buffer(r.IntN(100)), randomBytes(r)...)
				f := w.push(data, time.Time{})
				list = append(list, data)
				if f.seq != start+uint64(len(list)) {
					t.Fatalf("frame %d of %d got sequence %d", len(list), start, f.seq)
				}
			} else {
				settled = min(settled+r.IntN(4), len(list))
				if settled > 0 {
					w.settle(start + uint64(settled))
				}
			}
			checkWindow(t, &w, start, list, settled)
		}
	}
}

func randomBytes(r *rand.Rand) []byte {
	b := make([]byte, r.IntN(100))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func checkWindow(t *testing.T, w *window, start uint64, list [][]byte, settled int) {
	t.Helper()
	var bytes int64
	for i, data := range list {
		seq := start + uint64(i) + 1
		f, ok := w.at(seq)
		if ok != (i >= settled) {
			t.Fatalf("frame %d, %d settled: waiting %t", i+1, settled, ok)
		}
		if !ok {
			continue
		}
		bytes += int64(len(data))
		if f.seq != seq || len(f.data) != len(data) || w.waiting()[i-settled].seq != seq {
			t.Fatalf("frame %d is %d with %d bytes", seq, f.seq, len(f.data))
		}
	}
	if w.durable != start+uint64(settled) || w.next != start+uint64(len(list))+1 || w.bytes != bytes ||
		len(w.waiting()) != len(list)-settled {
		t.Fatalf("%d of %d settled: durable %d, next %d, %d bytes instead of %d", settled, len(list), w.durable, w.next, w.bytes, bytes)
	}
	if w.freeBytes > maxFree {
		t.Fatalf("%d bytes in free buffers", w.freeBytes)
	}
}

func TestWindowHasRoom(t *testing.T) {
	for _, tc := range []struct {
		frames, each, size int
		want               bool
	}{
		{0, 0, 1 << 20, true}, // one frame may be larger than the window
		{1, 10, 90, true},
		{1, 10, 91, false},
		{3, 10, 10, true},
		{4, 10, 10, false},
	} {
		w := newWindow(0, nil)
		for range tc.frames {
			w.push(make([]byte, tc.each), time.Time{})
		}
		if got := w.hasRoom(tc.size, 4, 100); got != tc.want {
			t.Errorf("%+v: %t", tc, got)
		}
	}
}

// TestWindowReusesItsMemory holds what a frame may cost on its way through the window.
func TestWindowReusesItsMemory(t *testing.T) {
	w := newWindow(0, nil)
	cycle := func() {
		for range 8 {
			w.push(w.buffer(1000)[:1000], time.Time{})
		}
		w.settle(w.next - 1)
	}
	cycle()
	if n := testing.AllocsPerRun(100, cycle); n != 0 {
		t.Errorf("%v allocations for 8 frames", n)
	}
}
