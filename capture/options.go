package capture

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// Options configure a Capture. Zero values mean the defaults that are named; fields without one are
// required.
type Options struct {
	DSN         string
	Cluster     string
	Node        string
	Origin      origin.Origin // this node's present epoch
	WriterEpoch uint64        // of the fence in force; run ids count within it
	SystemID    uint64        // of the server; another one is refused
	Timeline    uint32        // of the server; another one ends Run
	Slot        string
	Publication string
	FrameBytes  int           // size at which a frame is closed; 256 KiB, at least MinFrameBytes
	Linger      time.Duration // how long a frame waits for more while another is in flight; 5 ms
	// StatusInterval is how often PostgreSQL is told what is safe (more often if its wal_sender_timeout
	// asks for it), and how soon an idle advance may follow another; 10 s.
	StatusInterval time.Duration
	// ConfirmAfter is how long a frame has been durable before the slot is told; 1 s. A broker whose disk is lost takes with it
	// what the server does not keep any more; by then others have it.
	ConfirmAfter time.Duration
	// AgainLSN is up to where the WAL may hold a transaction of the bridge's own in which it has written rows again for this node
	// (wire.AgainPrefix); 0: nowhere.
	AgainLSN uint64
	// StartXID is above the id of each local transaction that had ended when this Capture was made; 0: not known.
	StartXID uint64
	Secret   string // with which pgbridge.ddl signs schema changes; empty: none is taken
	// HomeColumn names the column of a table that says at which node a row should be written, AtHome whether that is this one; ""
	// for a table whose rows have no home. Both nil: none has one.
	HomeColumn func(schema, table string) string
	AtHome     func(value []byte) bool
	SpoolDir   string // for deleted keys of large transactions; os.TempDir()
	// Seal is what rows of a table are sealed by; nil, or returning nil: they stand in frames as they are. Open reads such own frames back.
	Seal func(schema, table string) *wire.Sealer
	Open *wire.Opener
	// Rows says, of a table of which only some nodes have some rows, which ones have which; nil of others. SealRow is what a row is sealed by that these nodes have; nil, or returning nil: by nothing. Both nil: there are no such tables.
	Rows    func(schema, table string) *wire.Places
	SealRow func(nodes []string) *wire.Sealer
	// Columns are those of a table of which only some nodes have the values; SealRow is what these are sealed by, too. nil: there are none.
	Columns func(schema, table string) []wire.ColumnNodes
	Logger  *slog.Logger // slog.Default()
}

// MinFrameBytes is the least that Options.FrameBytes may be.
const MinFrameBytes = 4 << 10

func (o Options) withDefaults() Options {
	if o.FrameBytes == 0 {
		o.FrameBytes = 256 << 10
	}
	if o.Linger == 0 {
		o.Linger = 5 * time.Millisecond
	}
	if o.StatusInterval == 0 {
		o.StatusInterval = 10 * time.Second
	}
	if o.ConfirmAfter == 0 {
		o.ConfirmAfter = time.Second
	}
	if o.SpoolDir == "" {
		o.SpoolDir = os.TempDir()
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

// Validate reports the first setting that cannot work.
func (o Options) Validate() error {
	switch {
	case o.DSN == "":
		return fmt.Errorf("capture: no DSN")
	case o.Cluster == "" || o.Node == "":
		return fmt.Errorf("capture: no cluster or node name")
	case o.Origin.IsZero() || o.Origin.Node != o.Node || o.Origin.Epoch == 0:
		return fmt.Errorf("capture: origin %q is not an epoch of node %q", o.Origin, o.Node)
	case o.WriterEpoch == 0:
		return fmt.Errorf("capture: writer epoch 0; take one with a fence first")
	case o.Slot == "" || o.Publication == "":
		return fmt.Errorf("capture: no slot or publication name")
	case o.FrameBytes != 0 && o.FrameBytes < MinFrameBytes:
		return fmt.Errorf("capture: frames of %d bytes, at least %d are needed", o.FrameBytes, MinFrameBytes)
	case o.Linger < 0 || o.StatusInterval < 0:
		return fmt.Errorf("capture: negative linger %v or status interval %v", o.Linger, o.StatusInterval)
	}
	return nil
}

// Publisher takes frames in order and says how far they are safe. Its methods are safe for concurrent
// use; capture calls Publish from one goroutine only.
type Publisher interface {
	// Publish gives f the next stream sequence. It waits only for room, and is done with f and its body
	// when it returns; a frame that it returned an error for is not in the stream.
	Publish(ctx context.Context, f *wire.Frame) (streamSeq uint64, err error)
	// Ahead shows readers the frame that Publish will be given next, as it is now or whole, before anything has stored
	// it. It waits for nothing, and nothing depends on it.
	Ahead(f *wire.Frame, whole bool)
	// Durable is the stream sequence up to which everything is safe.
	Durable() uint64
	// Changed returns a channel that is closed when Durable or InFlight changes next.
	Changed() <-chan struct{}
	// InFlight is how many frames are not acknowledged yet.
	InFlight() int
	// Next is the stream sequence that the next frame will get.
	Next() uint64
	// MaxBody is the largest body that a frame may have, in bytes.
	MaxBody() int
}

// Deletes is told of local deletes. LocalDelete and LocalTruncate are called in WAL order, before the
// commit counts as passed, and must not wait for anything. HoldLSN is called from another goroutine.
type Deletes interface {
	LocalDelete(d Delete)
	LocalTruncate(t Truncate)
	// LocalSchema is told that the local transaction seq, whose id is xid, changed the schema through pgbridge.ddl.
	LocalSchema(seq uint64, xid uint32)
	// HoldLSN returns the lowest commit LSN of a local delete whose take-back is not flushed yet, 0 if
	// there is none (PROOF.md R20): the slot is not confirmed at or beyond it.
	HoldLSN() uint64
	// Told returns how much of low, which markers say is applied here, frames tell others, that have been told before: not
	// yet what made rows that a local delete may take back. It is called in WAL order, at each marker, and first with what an
	// earlier life has told.
	Told(before, low origin.Vector) origin.Vector
}

// Delete is one row that a local transaction deleted, or whose key it changed: then Key is the old one.
type Delete struct {
	Relation  *Table
	Key       []wire.Value // in the order of Relation.Key; valid during the call only
	Hash      wire.KeyHash // of Key
	Version   origin.Version
	Seq       uint64
	CommitLSN uint64 // start of the commit record
}

// Truncate is a table that a local transaction truncated.
type Truncate struct {
	Relation  *Table
	Version   origin.Version
	Seq       uint64
	CommitLSN uint64 // start of the commit record
}
