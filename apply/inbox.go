package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// txn is one remote transaction, received whole (PROOF.md R4).
type txn struct {
	wire.Begin
	origin  origin.Origin
	up, low origin.Vector
	// resume is the stream sequence at which reading must begin to see this transaction's successor
	// with all of its chunks.
	resume uint64
	// body holds the changes of a small transaction; a large one has run instead.
	body      []byte
	run       *run
	relations map[uint32]*wire.Relation // of the frame where it begins, for a small one
	described map[uint32]*wire.Relation // where it ends: with those that it describes itself
	schema    bool                      // it changes the schema
	here      *resident                 // see changes
	size      int64                     // bytes that it holds in the inbox
	// vectorOnly: not a transaction, only the news that the origin had seen low when it had published
	// up to Seq.
	vectorOnly bool
	// parked is the id under which the transaction is parked, if it is tried again; behind is then the seq behind its
	// origin's position.
	parked int64
	behind uint64
}

func (t *txn) version() origin.Version { return origin.Version{Stamp: t.Stamp, Origin: t.origin} }

// registration is how the transaction registers what it creates. One that is tried again has its origin's next seq for
// it: by its own, which the position has passed, it would be over before it begins.
func (t *txn) registration() registration { return registration{t.origin, max(t.Seq, t.behind)} }

// bytes is how much the transaction changes, about.
func (t *txn) bytes() int64 {
	if t.run != nil {
		return int64(t.run.length)
	}
	return int64(len(t.body))
}

func (t *txn) sifter() *sifter {
	if t.here == nil {
		return nil
	}
	return &sifter{resident: t.here, author: t.origin}
}

func (t *txn) entry() origin.Entry {
	return origin.Entry{Origin: t.origin, Seq: t.Seq, Stamp: t.Stamp}
}

// run is a large transaction in a file: the concatenated chunks.
type run struct {
	file    *os.File
	length  uint64
	spooled *atomic.Int64
	commit  wire.LargeCommit
	origin  origin.Origin
	open    *wire.Opener // as in the options
	buf     []byte       // of the last walk through its changes, for the next one
}

// spoolSuffix ends the names of runs' files.
const spoolSuffix = ".run"

// clearSpool removes the runs that a bridge which was killed has left behind.
func clearSpool(dir string) error {
	old, err := filepath.Glob(filepath.Join(dir, "*"+spoolSuffix))
	if err != nil {
		return err
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("clear spool directory: %w; make data_dir writable", err)
		}
	}
	return nil
}

func (r *run) remove() {
	r.spooled.Add(-int64(r.length))
	r.file.Close()
	os.Remove(r.file.Name())
}

// inbox takes an origin's frames apart and keeps the transactions, in order, until its worker has
// applied them. What is in it is bounded in bytes: push waits. Runs wait on disk.
type inbox struct {
	origin origin.Origin
	opts   *Options

	mu      sync.Mutex
	queue   []*txn
	taken   int // of the queue: sent to PostgreSQL, not yet acknowledged
	bytes   int64
	last    uint64        // highest seq received
	changed chan struct{} // closed and replaced at every change
	waits   bool          // push waits for room
	heard   heard

	// Only touched by push, which one goroutine calls.
	runs        map[uint64]*run
	spooled     atomic.Int64 // bytes on disk; given back by whoever removes a run
	writerEpoch uint64       // of the frame before
	runWriter   uint64       // the highest met
	back        uint64       // of the frame before

	frames  atomic.Uint64 // that have arrived
	resends *resender     // told of requests and answers; nil: of the own stream

	here *resident // as the options have it
}

func newInbox(o origin.Origin, opts *Options, last uint64) *inbox {
	return &inbox{origin: o, opts: opts, last: last, changed: make(chan struct{}), runs: map[uint64]*run{}, here: opts.resident()}
}

// close removes the files of runs that are still open.
func (b *inbox) close() {
	for _, r := range b.runs {
		r.remove()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, t := range b.queue {
		if t.run != nil {
			t.run.remove()
		}
	}
	b.queue = nil
}

// ErrGap means that a stream does not go on where this node's position is: transactions are missing in
// between. Find the place by seq.
var ErrGap = errors.New("gap in the origin's seqs")

// restart forgets the runs that were being received: reading begins anew, at or before this node's
// position. The goroutine that pushes calls it.
func (b *inbox) restart() {
	for id, r := range b.runs {
		r.remove()
		delete(b.runs, id)
	}
	b.back, b.writerEpoch, b.runWriter = 0, 0, 0
}

// push takes in the frame with stream sequence seq, 0 of one that is handed on by another node than its origin: reading is
// then begun again by the origin's seq. It waits while the inbox is full.
func (b *inbox) push(ctx context.Context, seq uint64, f *wire.Frame) error {
	txns, err := b.open(seq, f)
	if err != nil {
		return err
	}
	b.frames.Add(1)
	b.hearLow(f.Low)
	return b.add(ctx, txns)
}

// pushAhead takes in the transactions of a frame that the stream has not stored yet, or of its first part, if they go on
// where the inbox is: the frame itself, or if it is lost another one, brings them again. next is the stream sequence
// behind the last frame that was pushed: reading begins there again after a restart, not where they will stand.
func (b *inbox) pushAhead(ctx context.Context, next uint64, f *wire.Frame) error {
	if last, _, _ := b.received(); f.Origin != b.origin || f.WriterEpoch != b.writerEpoch || f.FirstSeq > last+1 {
		return nil
	}
	if b.back != 0 && next != 0 {
		next = b.back
	}
	txns, err := b.unpack(f, next, true)
	if err != nil {
		return fmt.Errorf("ahead of frame %d of %s: %w", next, b.origin, err)
	}
	return b.add(ctx, txns)
}

// open takes a frame apart.
func (b *inbox) open(seq uint64, f *wire.Frame) ([]*txn, error) {
	if f.Origin != b.origin {
		return nil, fmt.Errorf("frame %d is of origin %s, expected %s", seq, f.Origin, b.origin)
	}
	if !f.Fence && f.RunWriter() > b.runWriter {
		for id, r := range b.runs { // a new writer begins its runs anew
			r.remove()
			delete(b.runs, id)
		}
		b.runWriter, b.back = f.RunWriter(), 0
	}
	b.writerEpoch = f.WriterEpoch
	resume := seq
	if b.back != 0 && seq != 0 {
		resume = b.back
	}
	txns, err := b.unpack(f, resume, false)
	b.back = f.Back
	if err != nil {
		return nil, fmt.Errorf("frame %d of %s: %w", seq, b.origin, err)
	}
	return txns, nil
}

// full reports whether push waits for room, and returns a channel that is closed at the next change.
func (b *inbox) full() (bool, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waits, b.changed
}

func (b *inbox) add(ctx context.Context, txns []*txn) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.signal()
	for _, t := range txns {
		for b.bytes > 0 && b.bytes+t.size > b.opts.InboxBytes {
			b.waits = true
			b.signal()
			changed := b.changed
			b.mu.Unlock()
			select {
			case <-changed:
			case <-ctx.Done():
				b.mu.Lock()
				return context.Cause(ctx)
			}
			b.mu.Lock()
			b.waits = false
		}
		if !t.vectorOnly {
			if t.Seq <= b.last { // seen already: a duplicate by the dense numbering
				if t.run != nil {
					t.run.remove()
				}
				continue
			}
			if t.Seq != b.last+1 {
				return fmt.Errorf("%w: %s:%d comes after %d", ErrGap, b.origin, t.Seq, b.last)
			}
			b.last = t.Seq
		}
		if n := len(b.queue); t.vectorOnly && n > b.taken && b.queue[n-1].vectorOnly {
			b.queue[n-1] = t // it says all that the older one did
		} else {
			b.queue = append(b.queue, t)
		}
		b.bytes += t.size
	}
	return nil
}

func (b *inbox) signal() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// peek returns the first transaction that has not been taken yet, without taking it; if there is none,
// nil and a channel that is closed at the next change. passed gets the vectors that the origin published
// in between.
func (b *inbox) peek(passed func(*txn)) (*txn, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.taken < len(b.queue) {
		t := b.queue[b.taken]
		if !t.vectorOnly {
			return t, nil
		}
		if b.taken > 0 { // those before it are not applied yet; landed will come to it
			b.taken++
			continue
		}
		b.pop()
		passed(t)
	}
	return nil, b.changed
}

// ahead returns the last of the next n transactions that go on from the one that peek returned and of which each
// passes ok; nil if the first does not.
func (b *inbox) ahead(n int, ok func(*txn) bool) (last *txn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, t := range b.queue[b.taken:] {
		if t.vectorOnly {
			continue
		}
		if n--; n < 0 || !ok(t) {
			break
		}
		last = t
	}
	return last
}

// enough reports whether n entries of the queue, or so many bytes, have not been taken, or push waits for room; if not,
// the channel is closed at the next change.
func (b *inbox) enough(n, bytes int) (bool, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	waiting := b.queue[b.taken:]
	if len(waiting) >= n || b.waits {
		return true, nil
	}
	for _, t := range waiting {
		bytes -= int(t.size)
	}
	return bytes <= 0, b.changed
}

// upcoming appends up to n of the transactions that have not been taken yet.
func (b *inbox) upcoming(to []*txn, n int) []*txn {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, t := range b.queue[b.taken:] {
		if n == 0 {
			break
		}
		if !t.vectorOnly {
			to, n = append(to, t), n-1
		}
	}
	return to
}

// takeMany marks the next n transactions as being applied.
func (b *inbox) takeMany(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n > 0 {
		if !b.queue[b.taken].vectorOnly { // else landed will come to it
			n--
		}
		b.taken++
	}
}

// take marks the transaction that peek returned as being applied.
func (b *inbox) take() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.taken++
}

// landed removes the oldest n transactions, which are applied, and hands the vectors among and behind them to passed.
func (b *inbox) landed(n int, passed func(*txn)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n > 0 || b.taken > 0 && b.queue[0].vectorOnly {
		if t := b.queue[0]; t.vectorOnly {
			passed(t)
		} else {
			n--
		}
		b.pop()
		b.taken--
	}
	b.signal()
}

// rewind gives back everything that was taken and has not landed.
func (b *inbox) rewind() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.taken = 0
}

func (b *inbox) pop() {
	t := b.queue[0]
	b.bytes -= t.size
	b.heard.forget(t.low)
	if t.run != nil {
		t.run.remove()
	}
	b.queue[0] = nil
	b.queue = b.queue[1:]
}

// received returns the highest seq received, how many transactions wait, and the oldest one's stamp.
func (b *inbox) received() (last uint64, waiting int, oldest origin.Stamp) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, t := range b.queue {
		if !t.vectorOnly {
			if waiting == 0 {
				oldest = t.Stamp
			}
			waiting++
		}
	}
	return b.last, waiting, oldest
}

// held is how many bytes wait, in memory and, of large transactions, on disk.
func (b *inbox) held() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.spooled.Load()
	for _, t := range b.queue {
		if !t.vectorOnly {
			n += t.size
		}
	}
	return n
}

const txnOverhead = 256 // bytes that a queued transaction costs beside its body, roughly

// unpack takes a frame apart. The transactions share memory with its body. Of one that came ahead of the stream they are
// all that counts.
func (b *inbox) unpack(f *wire.Frame, resume uint64, ahead bool) ([]*txn, error) {
	var txns []*txn
	var up, low origin.Vector
	relations := map[uint32]*wire.Relation{}
	body, err := b.opts.Open.Frame(f)
	if err != nil {
		return nil, err
	}
	for recs := wire.NewRecords(body); ; {
		rec, err := recs.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if ahead && !slices.Contains(aheadKinds, rec.Kind) {
			return nil, fmt.Errorf("%w: record of kind %q ahead of the stream", wire.ErrCorrupt, rec.Kind)
		}
		switch rec.Kind {
		case wire.KindVector:
			up, low, err = wire.ParseDeps(rec.Payload)
		case wire.KindRelation:
			var r *wire.Relation
			if r, err = wire.ParseRelation(rec.Payload); err == nil {
				relations = withRelation(relations, r)
			}
		case wire.KindBegin:
			t := &txn{origin: f.Origin, up: up, low: low, resume: resume, relations: relations, here: b.here}
			if t.Begin, err = wire.ParseBegin(rec.Payload); err == nil {
				t.body, relations, t.schema, err = transaction(&recs, relations)
				t.described = relations
			}
			t.size = int64(len(t.body)) + txnOverhead
			txns = append(txns, t)
		case wire.KindLost:
			var lost []wire.Loss
			if lost, err = wire.ParseLost(rec.Payload); err == nil {
				b.hearLost(lost)
			}
		case wire.KindAsk:
			if b.resends != nil {
				err = b.resends.hearAsk(f.Origin, rec.Payload)
			}
		case wire.KindAnswer:
			if b.resends != nil {
				need := f.Up.Clone()
				need.Advance(origin.Entry{Origin: f.Origin, Seq: f.LastSeq, Stamp: f.LastStamp})
				err = b.resends.hearAnswer(rec.Payload, need)
			}
		case wire.KindChunk, wire.KindRunAbort, wire.KindLargeCommit:
			if f.RunWriter() < b.runWriter { // it comes again, and a later writer's runs have the same ids
				continue
			}
			var t *txn
			if t, err = b.ofRun(rec); t != nil {
				t.origin, t.up, t.low, t.resume = f.Origin, up, low, resume
				txns = append(txns, t)
			}
		default:
			err = fmt.Errorf("%w: record of kind %q outside of a transaction", wire.ErrCorrupt, rec.Kind)
		}
		if err != nil {
			return nil, err
		}
	}
	if !f.Fence && !ahead {
		txns = append(txns, &txn{vectorOnly: true, origin: f.Origin, low: f.Low, up: f.Up,
			Begin: wire.Begin{Seq: f.LastSeq, Stamp: f.LastStamp}})
	}
	return txns, nil
}

// aheadKinds may stand in what comes ahead of the stream; all else is taken once, from there.
var aheadKinds = []wire.Kind{wire.KindVector, wire.KindRelation, wire.KindBegin}

// transaction finds the end of the small transaction that has begun and returns its changes; relations
// that are described within it become part of the frame's.
func transaction(recs *wire.Records, relations map[uint32]*wire.Relation) (_ []byte, _ map[uint32]*wire.Relation, schema bool, _ error) {
	start := recs.Rest()
	for {
		before := len(recs.Rest())
		rec, err := recs.Next()
		if err == io.EOF {
			return nil, nil, false, fmt.Errorf("%w: transaction has no end", wire.ErrCorrupt)
		}
		if err != nil {
			return nil, nil, false, err
		}
		switch rec.Kind {
		case wire.KindCommit:
			return start[:len(start)-before], relations, schema, nil
		case wire.KindRelation:
			r, err := wire.ParseRelation(rec.Payload)
			if err != nil {
				return nil, nil, false, err
			}
			relations = withRelation(relations, r)
		case wire.KindInsert, wire.KindUpdate, wire.KindDelete, wire.KindTruncate:
		case wire.KindSchema:
			schema = true
		default:
			return nil, nil, false, fmt.Errorf("%w: record of kind %q within a transaction", wire.ErrCorrupt, rec.Kind)
		}
	}
}

// withRelation returns the relations with r in place. Earlier transactions of the frame keep the map
// that they have, and with it the relations as they were for them.
func withRelation(m map[uint32]*wire.Relation, r *wire.Relation) map[uint32]*wire.Relation {
	c := make(map[uint32]*wire.Relation, len(m))
	for k, v := range m {
		c[k] = v
	}
	c[r.ID] = r
	return c
}

// ofRun takes a record of a run; one that ends it may give its transaction.
func (b *inbox) ofRun(rec wire.Record) (*txn, error) {
	switch rec.Kind {
	case wire.KindChunk:
		return nil, b.chunk(rec.Payload)
	case wire.KindLargeCommit:
		return b.commit(rec.Payload)
	}
	id, err := wire.ParseNumber(rec.Payload)
	if err == nil && b.runs[id] != nil {
		b.runs[id].remove()
		delete(b.runs, id)
	}
	return nil, err
}

// chunk writes a piece of a run to its file. A chunk of a run whose beginning was not read belongs to a
// transaction that is applied already: whoever resumes begins where the oldest needed run does.
func (b *inbox) chunk(payload []byte) error {
	id, offset, data, err := wire.ParseChunk(payload)
	if err != nil {
		return err
	}
	r := b.runs[id]
	if r == nil {
		if offset != 0 {
			return nil
		}
		// A name of its own: the same run may be read again while a worker still reads the first copy.
		f, err := os.CreateTemp(b.opts.SpoolDir, fmt.Sprintf("%s-%d-%d-*%s", b.origin.Node, b.writerEpoch, id, spoolSuffix))
		if err != nil {
			return fmt.Errorf("spool a large transaction: %w; make room in data_dir or make it writable", err)
		}
		r = &run{file: f, spooled: &b.spooled, origin: b.origin, open: b.opts.Open}
		b.runs[id] = r
	}
	if offset > r.length {
		return fmt.Errorf("%w: run %d goes on at byte %d, %d are here", wire.ErrCorrupt, id, offset, r.length)
	}
	// A node that hands runs on begins the open ones again after a restart, or with another neighbour.
	have := r.length - offset
	if have >= uint64(len(data)) {
		return nil
	}
	data = data[have:]
	if limit := b.opts.SpoolLimit; limit > 0 && b.spooled.Load()+int64(len(data)) > limit {
		return fmt.Errorf("spool a large transaction: apply.spool_limit of %d bytes is reached; raise it", limit)
	}
	if _, err := r.file.WriteAt(data, int64(r.length)); err != nil {
		return fmt.Errorf("spool a large transaction: %w; make room in data_dir or make it writable", err)
	}
	b.spooled.Add(int64(len(data)))
	r.length += uint64(len(data))
	return nil
}

func (b *inbox) commit(payload []byte) (*txn, error) {
	c, err := wire.ParseLargeCommit(payload)
	if err != nil {
		return nil, err
	}
	r := b.runs[c.Run]
	if r == nil || r.length != c.Length {
		if c.Seq <= b.last {
			return nil, nil
		}
		return nil, fmt.Errorf("%w: run %d of transaction %d is not all here", wire.ErrCorrupt, c.Run, c.Seq)
	}
	delete(b.runs, c.Run)
	r.commit = c
	return &txn{Begin: c.Begin, run: r, schema: c.Schemas > 0, size: txnOverhead, here: b.here}, nil
}
