package capture

import (
	"context"
	"encoding/binary"

	"github.com/pgbridge/pgbridge/wire"
)

// headBytes is how much of a long message stands in its first part at least: more than all fixed fields
// in front of a row take.
const headBytes = 64

// sink takes what a stitcher finds.
type sink interface {
	// whole takes a message with its header. It is valid during the call only.
	whole(ctx context.Context, m []byte) error
	// part takes the next bytes of a message that is longer than the limit; the first part holds at
	// least headBytes, header included.
	part(ctx context.Context, b []byte, first, last bool) error
}

// stitcher cuts a stream of bytes, which arrives in pieces of any size, into messages. A message that
// lies within one piece is not copied; one that is longer than limit is never held as a whole, so that
// memory stays bounded whatever the size of a row (invariant 8).
type stitcher struct {
	// size returns a message's whole length if b, its beginning, tells it already.
	size  func(b []byte) (n int, known bool, err error)
	limit int
	rest  []byte // beginning of a message that has not ended yet
	left  int    // what is to come of a message in parts
}

// feed takes the next piece.
func (s *stitcher) feed(ctx context.Context, b []byte, to sink) error {
	for len(b) > 0 {
		if s.left > 0 {
			n := min(s.left, len(b))
			s.left -= n
			if err := to.part(ctx, b[:n], false, s.left == 0); err != nil {
				return err
			}
			b = b[n:]
			continue
		}
		n, err := s.next(ctx, b, to)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// next takes one message, or what there is of it, off b, and returns how much it took.
func (s *stitcher) next(ctx context.Context, b []byte, to sink) (int, error) {
	if len(s.rest) > 0 {
		return s.complete(ctx, b, to)
	}
	want, size, err := s.want(b)
	if err != nil {
		return 0, err
	}
	if len(b) < want {
		s.rest = append(s.rest, b...)
		return len(b), nil
	}
	m := b[:min(size, len(b))]
	return len(m), s.hand(ctx, m, size, to)
}

// complete adds to a message that began in an earlier piece no more than what it lacks.
func (s *stitcher) complete(ctx context.Context, b []byte, to sink) (int, error) {
	took := 0
	for {
		want, size, err := s.want(s.rest)
		if err != nil {
			return took, err
		}
		if len(s.rest) >= want {
			m := s.rest
			s.rest = s.rest[:0]
			return took, s.hand(ctx, m, size, to)
		}
		if took == len(b) {
			return took, nil
		}
		n := min(want-len(s.rest), len(b)-took)
		s.rest = append(s.rest, b[took:took+n]...)
		took += n
	}
}

func (s *stitcher) hand(ctx context.Context, m []byte, size int, to sink) error {
	if size <= s.limit {
		return to.whole(ctx, m)
	}
	s.left = size - len(m)
	return to.part(ctx, m, true, s.left == 0)
}

// want returns how much of the message that m begins must be there before it can be handed over, and its
// size once that is known.
func (s *stitcher) want(m []byte) (want, size int, err error) {
	size, known, err := s.size(m)
	switch {
	case err != nil:
		return 0, 0, err
	case !known:
		return len(m) + 1, 0, nil
	case size <= s.limit:
		return size, size, nil
	}
	return headBytes, size, nil
}

// messageSize is the size of a message of PostgreSQL's protocol: type, then a length that counts itself.
func messageSize(b []byte) (int, bool, error) {
	if len(b) < 5 {
		return 0, false, nil
	}
	n := binary.BigEndian.Uint32(b[1:])
	if n < 4 || n > 1<<30+1<<20 { // PostgreSQL builds no message beyond 1 GiB
		return 0, false, protocolError("message %q with a length of %d", b[0], n)
	}
	return 1 + int(n), true, nil
}

// recordSize is the size of a record of package wire.
func recordSize(b []byte) (int, bool, error) {
	if len(b) < 2 {
		return 0, false, nil
	}
	n, w := binary.Uvarint(b[1:])
	switch {
	case w < 0 || n > 1<<32:
		return 0, false, wire.ErrCorrupt
	case w == 0:
		if len(b) > binary.MaxVarintLen64 {
			return 0, false, wire.ErrCorrupt
		}
		return 0, false, nil
	}
	return 1 + w + int(n), true, nil
}
