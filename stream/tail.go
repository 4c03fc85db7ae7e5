package stream

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgbridge/pgbridge/wire"
)

// tail is where a stream ends.
type tail struct {
	seq   uint64      // of frame; of the last message there ever was if the stream is empty
	frame *wire.Frame // the last one of the highest writer epoch; nil: the stream is empty
	last  uint64      // the last message, which may be one that counts for nothing
	data  []byte      // of last
}

// config is the shape of a node's stream.
func (p *Publisher) config() jetstream.StreamConfig {
	maxBytes := p.o.MaxBytes
	if maxBytes == 0 {
		maxBytes = -1
	}
	persist, what := jetstream.DefaultPersistMode, fmt.Sprintf("frames of node %s", p.o.Node)
	if p.o.Origin != p.o.Node {
		what = fmt.Sprintf("frames of node %s that node %s hands on,", p.o.Origin, p.o.Node)
		if p.o.Replicas <= 1 {
			persist = jetstream.AsyncPersistMode
		}
	}
	return jetstream.StreamConfig{
		Name:        p.stream,
		Description: "pgbridge: " + what + " of cluster " + p.o.Cluster,
		Subjects:    []string{p.subject},
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardNew,
		MaxMsgs:     -1, MaxBytes: maxBytes, MaxMsgsPerSubject: -1, MaxMsgSize: -1, MaxConsumers: -1,
		Storage: jetstream.FileStorage, Replicas: max(1, p.o.Replicas), PersistMode: persist,
		AllowDirect: true, FirstSeq: p.o.FirstSeq, Metadata: p.notes(nil),
	}
}

// notePrefix is that of notes among a stream's metadata, where the broker and others have theirs.
const notePrefix = "pgbridge."

// notes returns a stream's metadata with the publisher's notes in it.
func (p *Publisher) notes(metadata map[string]string) map[string]string {
	m := maps.Clone(metadata)
	maps.DeleteFunc(m, func(key, _ string) bool { return strings.HasPrefix(key, notePrefix) })
	for key, value := range p.o.Notes {
		if m == nil {
			m = map[string]string{}
		}
		m[notePrefix+key] = value
	}
	return m
}

// Notes returns what the stream's writer has noted of itself last.
func (r *Reader) Notes(ctx context.Context) (map[string]string, error) {
	st, err := r.api.stream(ctx, r.stream)
	if err != nil {
		return nil, err
	}
	notes := map[string]string{}
	for key, value := range st.Config.Metadata {
		if name, ok := strings.CutPrefix(key, notePrefix); ok {
			notes[name] = value
		}
	}
	return notes, nil
}

// openStream creates the stream or checks the one that is there.
func (p *Publisher) openStream(ctx context.Context) (*jetstream.StreamInfo, error) {
	want := p.config()
	st, err := p.api.stream(ctx, p.stream)
	if IsNoStream(err) {
		if st, err = p.api.create(ctx, want); hasCode(err, codeSubjectsTaken) {
			return nil, fmt.Errorf("create stream %s: another stream of the broker stores subjects of %s; remove those "+
				"from it, or choose another cluster name: %w", p.stream, want.Subjects[0], err)
		} else if isFull(err) {
			return nil, fmt.Errorf("create stream %s with max_bytes %d: the broker has not that much room for it; lower "+
				"max_bytes, or raise the broker's limits: %w", p.stream, want.MaxBytes, err)
		} else if err != nil {
			return nil, fmt.Errorf("create stream %s: %w", p.stream, replicated(err, want.Replicas))
		}
		return st, nil
	}
	if err != nil {
		return nil, err
	}
	if wrong := differs(&st.Config, &want); wrong != "" {
		return nil, fmt.Errorf("stream %s on the broker at %s: %w: %s; if nobody needs it, delete it, else choose "+
			"another cluster or node name", p.stream, brokerName(p.api.nc), ErrForeignStream, wrong)
	}
	return p.adjust(ctx, st, &want)
}

// differs tells in what a stream is not what a node's stream must be; empty: in nothing.
func differs(is, want *jetstream.StreamConfig) string {
	switch {
	case !slices.Equal(is.Subjects, want.Subjects):
		return fmt.Sprintf("it stores subjects %q instead of %q", is.Subjects, want.Subjects)
	case is.Retention != want.Retention:
		return fmt.Sprintf("its retention is %q, frames would vanish", is.Retention)
	case is.Discard != want.Discard:
		return "it discards old messages when it is full"
	case is.MaxAge != 0 || is.MaxMsgs > 0 || is.MaxMsgsPerSubject > 0 || is.AllowMsgTTL:
		return "it discards messages by age or number"
	case is.Storage != want.Storage:
		return "it is kept in memory"
	case is.PersistMode == jetstream.AsyncPersistMode && want.PersistMode != is.PersistMode:
		return "it acknowledges messages before they are written"
	case is.Mirror != nil || len(is.Sources) > 0 || is.SubjectTransform != nil:
		return "it copies or transforms messages of other streams"
	case is.Sealed || is.NoAck || is.DenyPurge || is.AllowRollup || is.AllowMsgSchedules || is.AllowMsgCounter:
		return "it is sealed, acknowledges nothing, refuses a purge, or interprets messages"
	}
	return ""
}

// adjust changes what may be changed in a stream that is ours.
func (p *Publisher) adjust(ctx context.Context, st *jetstream.StreamInfo, want *jetstream.StreamConfig) (*jetstream.StreamInfo, error) {
	is := st.Config
	bytes := limit(want.MaxBytes, st.State.Bytes)
	p.raised.Store(bytes != want.MaxBytes)
	replicas := is.Replicas
	if p.o.Replicas > 0 && is.PersistMode != jetstream.AsyncPersistMode { // which the server permits with one only, and does not change
		replicas = p.o.Replicas
	}
	notes := p.notes(is.Metadata)
	noted := maps.Equal(is.Metadata, notes)
	same := is.MaxBytes == bytes && is.Replicas == replicas && is.AllowDirect && is.MaxMsgSize <= 0
	if same && noted {
		return st, nil
	}
	is.Metadata = notes
	is.MaxBytes, is.Replicas, is.AllowDirect, is.MaxMsgSize = bytes, replicas, true, -1
	st, err := p.api.update(ctx, is)
	if err != nil {
		return nil, fmt.Errorf("set max_bytes %d, %d replicas and notes of stream %s: %w", bytes, replicas, p.stream, replicated(err, replicas))
	}
	if same {
		return st, nil
	}
	p.o.Logger.Info("stream limits changed", "stream", p.stream, "max_bytes", bytes, "replicas", replicas)
	return st, nil
}

// replicated adds the mend to an error of a broker that has no room for so many replicas.
func replicated(err error, n int) error {
	if n > 1 && hasCode(err, codeNoPeers, codeNotClustered) {
		return fmt.Errorf("%d replicas take a cluster of that many NATS servers that are up, with room for the stream; lower stream.replicas, or see to the servers: %w", n, err)
	}
	return err
}

// readTail reads where the stream ends, from its leader, and begins the window there.
func (p *Publisher) readTail(ctx context.Context) error {
	t, err := p.findTail(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tail = t
	p.window = newWindow(t.last, t.data)
	p.durable.Store(t.last)
	return nil
}

// findTail looks for the last frame of the highest writer epoch. An older writer's frames may stand
// behind a fence that was not completed, but never MaxWindowFrames behind its beginning (see Fence), so
// that the last so many frames tell.
func (p *Publisher) findTail(ctx context.Context) (tail, error) {
	st, err := p.api.stream(ctx, p.stream)
	if err != nil {
		return tail{}, err
	}
	t := tail{seq: st.State.LastSeq, last: st.State.LastSeq}
	if st.State.Msgs == 0 {
		return t, nil
	}
	if t.data, err = p.api.message(ctx, p.stream, t.last); err != nil {
		return tail{}, err
	}
	first := max(st.State.FirstSeq, lookback(t.last))
	err = scan(ctx, p.api, p.stream, span{first, t.last}, func(seq uint64, data []byte) error {
		f, err := p.decode(seq, data)
		if err == nil && (t.frame == nil || f.WriterEpoch >= t.frame.WriterEpoch) {
			t.seq, t.frame = seq, f
		}
		return err
	})
	return t, err
}

// lookback is where to begin so that the fence in force at seq is among what is read, if there is one
// with older frames behind it.
func lookback(seq uint64) uint64 {
	if seq < MaxWindowFrames {
		return 1
	}
	return seq - MaxWindowFrames + 1
}

// decode decodes a message that must be a frame of ours. Each call has its own decoder: it is not on the
// way of every frame.
func (p *Publisher) decode(seq uint64, data []byte) (*wire.Frame, error) {
	return decodeOf(&wire.Decoder{}, p.o.Cluster, p.o.Node, p.stream, seq, data)
}

// decodeOf decodes a message and checks whose frame it is.
func decodeOf(d *wire.Decoder, cluster, sender, stream string, seq uint64, data []byte) (*wire.Frame, error) {
	f, err := d.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("frame %d of stream %s: %w", seq, stream, err)
	}
	if f.Cluster != cluster || f.Sender != sender {
		return nil, fmt.Errorf("frame %d of stream %s: %w: it is of cluster %q, sender %q instead of cluster %q, sender %q",
			seq, stream, ErrForeignStream, f.Cluster, f.Sender, cluster, sender)
	}
	return f, nil
}

// clockTries is how often Clock asks: the answer that came soonest tells most.
const clockTries = 5

// Clock returns how far the clock of the broker's machine is ahead of this one's, and within what that is known: half of the time
// that the answer took (the same as NTP's, RFC 5905 section 8, without its filters).
func (r *Reader) Clock(ctx context.Context) (ahead, within time.Duration, err error) {
	for try := range clockTries {
		asked := time.Now()
		st, err := r.api.stream(ctx, r.stream)
		if err != nil {
			return 0, 0, err
		}
		if half := time.Since(asked) / 2; try == 0 || half < within {
			ahead, within = st.TimeStamp.Sub(asked.Add(half)), half
		}
	}
	return ahead, within, nil
}
