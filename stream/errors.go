package stream

import (
	"errors"
	"fmt"
)

var (
	// ErrFenced means that another bridge writes this node's stream. This one must stop for good.
	ErrFenced = errors.New("fenced: another bridge writes the stream of this node")

	// ErrTailMoved means that an older bridge wrote to the stream after its tail was read. Nothing of
	// ours was stored behind that. Read the tail again, by opening a new Publisher, and go on from there.
	ErrTailMoved = errors.New("an older bridge wrote to the stream after its tail was read")

	// ErrStreamLost means that frames which the broker had acknowledged are gone: the stream was
	// deleted, recreated or rewound. They must be published again from elsewhere.
	ErrStreamLost = errors.New("the broker has lost frames that it had acknowledged")

	// ErrForeignStream means that a stream with our name is not ours: another shape, or frames of
	// another cluster or sender in it.
	ErrForeignStream = errors.New("the stream is not this node's")

	// ErrFrameTooLarge means that a frame exceeds the broker's max_payload and can never be stored.
	ErrFrameTooLarge = errors.New("frame exceeds the broker's max_payload")

	// ErrGap means that frames which a reader needs are not in the stream any more. Every GapError is one.
	ErrGap = errors.New("frames are gone from the stream")

	// ErrStreamChanged means that a stream was recreated or rewound below a reader's position: what it
	// holds at that position now is not what was there.
	ErrStreamChanged = errors.New("the stream was recreated or rewound")

	// ErrNoFrame means that no frame is stored under the sequence that was asked for.
	ErrNoFrame = errors.New("no such frame")

	// ErrStopped is what Publish returns after Run has ended without an error of its own.
	ErrStopped = errors.New("the publisher is stopped")
)

// GapError says which frame a reader needs and which is the first that it can have. It is an ErrGap.
type GapError struct {
	Stream      string
	Need, First uint64 // stream sequences
}

// Error names the stream and both sequences.
func (e *GapError) Error() string {
	return fmt.Sprintf("stream %s begins with frame %d, frame %d is needed: %v", e.Stream, e.First, e.Need, ErrGap)
}

// Unwrap makes errors.Is(err, ErrGap) true.
func (e *GapError) Unwrap() error { return ErrGap }
