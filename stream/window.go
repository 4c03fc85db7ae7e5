package stream

import (
	"encoding/binary"
	"time"
)

// pending is a frame that has its stream sequence but not the broker's ack.
type pending struct {
	seq   uint64
	data  []byte // encoded
	since time.Time
}

// window holds the frames that are not durable yet: dense from durable+1 to next-1. It is pure.
type window struct {
	durable uint64 // everything up to it is stored and was acknowledged
	next    uint64 // what the next frame gets
	sum     uint32 // the CRC at the end of message durable; 0 if unknown
	bytes   int64  // of the waiting frames' data

	ring []pending // the waiting frames, in order, from head on
	head int

	free      [][]byte // buffers of frames that became durable
	freeBytes int
}

// maxFree bounds the buffers that are kept for the next frames, in bytes.
const maxFree = 4 << 20

// newWindow begins behind last, the last message of the stream, whose bytes are data (nil: unknown).
func newWindow(last uint64, data []byte) window {
	return window{durable: last, next: last + 1, sum: checksum(data)}
}

// checksum is the CRC that ends a frame; 0 for what is too short to be one.
func checksum(data []byte) uint32 {
	if len(data) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(data[len(data)-4:])
}

// waiting returns the frames that are not durable, in order.
func (w *window) waiting() []pending { return w.ring[w.head:] }

// hasRoom reports whether one more frame of this size may wait. A single frame always may.
func (w *window) hasRoom(size, maxFrames int, maxBytes int64) bool {
	n := len(w.waiting())
	return n == 0 || n < maxFrames && w.bytes+int64(size) <= maxBytes
}

func (w *window) push(data []byte, now time.Time) pending {
	if w.head > 0 && len(w.ring) == cap(w.ring) {
		n := copy(w.ring, w.waiting())
		clear(w.ring[n:])
		w.ring, w.head = w.ring[:n], 0
	}
	f := pending{seq: w.next, data: data, since: now}
	w.next++
	w.ring = append(w.ring, f)
	w.bytes += int64(len(data))
	return f
}

// settle drops the frames up to seq, which are durable now.
func (w *window) settle(seq uint64) {
	for w.durable < seq && w.durable+1 < w.next {
		f := &w.ring[w.head]
		w.durable, w.sum = f.seq, checksum(f.data)
		w.bytes -= int64(len(f.data))
		w.recycle(f.data)
		*f = pending{}
		w.head++
	}
	if w.head == len(w.ring) {
		w.ring, w.head = w.ring[:0], 0
	}
}

// at returns the waiting frame with this sequence, if there is one.
func (w *window) at(seq uint64) (pending, bool) {
	if seq <= w.durable || seq >= w.next {
		return pending{}, false
	}
	return w.waiting()[seq-w.durable-1], true
}

func (w *window) recycle(b []byte) {
	if w.freeBytes+cap(b) <= maxFree {
		w.free = append(w.free, b[:0])
		w.freeBytes += cap(b)
	}
}

// buffer returns an empty buffer with room for size bytes.
func (w *window) buffer(size int) []byte {
	n := len(w.free)
	if n == 0 {
		return make([]byte, 0, size)
	}
	b := w.free[n-1]
	w.free, w.freeBytes = w.free[:n-1], w.freeBytes-cap(b)
	if cap(b) < size {
		return make([]byte, 0, size)
	}
	return b
}
