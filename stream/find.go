package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// Info asks the stream's leader for the first and last stream sequence (last < first: it is empty) and
// when the stream was created.
func (r *Reader) Info(ctx context.Context) (first, last uint64, created time.Time, err error) {
	st, err := r.api.stream(ctx, r.stream)
	if err != nil {
		return 0, 0, time.Time{}, err
	}
	return st.State.FirstSeq, st.State.LastSeq, st.Created, nil
}

// Get reads one frame. ErrNoFrame: it is not in the stream.
func (r *Reader) Get(ctx context.Context, seq uint64) (*wire.Frame, error) {
	_, f, err := r.get(ctx, seq, "")
	return f, err
}

// get reads the frame seq or, with a subject, the first on that subject from seq on.
func (r *Reader) get(ctx context.Context, seq uint64, subject string) (uint64, *wire.Frame, error) {
	seq, data, err := r.direct(ctx, seq, subject)
	if err != nil {
		return 0, nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	f, err := decodeOf(&r.decoder, r.o.Cluster, r.o.Sender, r.stream, seq, data)
	return seq, f, err
}

func (r *Reader) direct(ctx context.Context, seq uint64, subject string) (uint64, []byte, error) {
	got, data, err := r.api.direct(ctx, r.stream, seq, subject)
	if errors.Is(err, ErrNoFrame) {
		return 0, nil, fmt.Errorf("frame %d of stream %s: %w", seq, r.stream, err)
	}
	return got, data, err
}

// Find returns where to begin reading so that the transaction seq of o and all behind it is met: the
// first frame whose last seq of o reaches seq or, if chunks of a run that is still open there stand
// earlier, the frame in which the oldest begins. If no frame reaches seq yet, that is where the next
// one will be. ErrGap: the transaction was in a frame that is gone.
//
// A frame's last seq rises along the stream, among the frames of one origin, which have a subject of
// their own: a binary search takes a direct get for each step.
func (r *Reader) Find(ctx context.Context, o origin.Origin, seq uint64) (streamSeq uint64, err error) {
	first, last, _, err := r.Info(ctx)
	if err != nil {
		return 0, err
	}
	s := search{r: r, o: o, seq: seq, subject: r.subjectOf(o), hit: last + 1}
	// Frames up to low do not reach seq, the first from high on does, or there is none.
	low, high := max(first, 1)-1, last+1
	for low+1 < high {
		mid := low + (high-low)/2
		at, reached, err := s.probe(ctx, mid)
		if err != nil {
			return 0, err
		}
		if reached {
			high = mid
		} else {
			low = min(at, high-1)
		}
	}
	return s.answer()
}

// search is the state of one Find.
type search struct {
	r       *Reader
	o       origin.Origin
	seq     uint64
	subject string

	hit    uint64      // the first frame known to reach seq, or where one will be
	found  *wire.Frame // at hit; nil: none
	before *wire.Frame // the last frame of o's node known not to reach seq; nil: none
}

// probe reads the first frame of o's node from mid on, and says where it stands and whether it reaches
// seq. That there is none is as good.
func (s *search) probe(ctx context.Context, mid uint64) (at uint64, reached bool, err error) {
	at, f, err := s.r.get(ctx, mid, s.subject)
	if errors.Is(err, ErrNoFrame) {
		return mid, true, nil
	}
	if err != nil {
		return 0, false, err
	}
	if s.reaches(f) {
		s.hit, s.found = at, f
		return at, true, nil
	}
	s.before = f
	return at, false, nil
}

func (s *search) reaches(f *wire.Frame) bool {
	if f.Origin.Epoch != s.o.Epoch {
		return f.Origin.Epoch > s.o.Epoch
	}
	return f.LastSeq >= s.seq
}

func (s *search) answer() (uint64, error) {
	if s.before != nil && s.before.Back != 0 {
		return min(s.before.Back, s.hit), nil
	}
	if f := s.found; s.before == nil && f != nil && s.seq > 0 && f.Origin == s.o && (f.FirstSeq == 0 || f.FirstSeq > s.seq) {
		return 0, fmt.Errorf("transaction %d of %v: stream %s begins with frame %d, which ends with transaction %d: %w",
			s.seq, s.o, s.r.stream, s.hit, f.LastSeq, ErrGap)
	}
	return s.hit, nil
}
