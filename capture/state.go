package capture

import (
	"sync"
	"sync/atomic"

	"github.com/pgbridge/pgbridge/origin"
)

// state is what others may ask a Capture while it runs. Every part guards itself.
type state struct {
	passed  waterline
	vectors atomic.Pointer[vectors]
	marks   marks
	recents recents
	lifted  lifted
	written written
	guard   guard

	// hurry: somebody waits for what is captured to be published; hurried wakes the session up.
	hurry   atomic.Bool
	hurried chan struct{} // of capacity 1

	mu     sync.Mutex
	status Status // guarded by mu
}

// vectors are what markers that were read back have said; they are never changed.
type vectors struct{ up, low origin.Vector }

func (s *state) report(change func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
}

// The states that Status names.
const (
	StateConnecting = "connecting" // no connection to PostgreSQL; Waiting says why
	StateStreaming  = "streaming"
)

// Status is how far a Capture has come.
type Status struct {
	State        string
	Waiting      string       // why it does not stream, with the server's words; empty if it does
	Seq          uint64       // of the last transaction in a frame
	Stamp        origin.Stamp // of that transaction
	PassedLSN    uint64       // everything below has been read and told
	ConfirmedLSN uint64       // everything below is safe, as the server is told
	OpenRuns     int          // large transactions that have begun in frames and not ended
	Counters
}

// Counters count since the Capture was made.
type Counters struct {
	Transactions uint64 // tagged
	Changes      uint64 // rows and truncates in frames, those of rolled back subtransactions too
	Frames       uint64
	EmptyFrames  uint64 // of Frames, without records
	Bytes        uint64 // of frames' bodies
	Runs         uint64 // large transactions begun
	RunsAborted  uint64 // of Runs, never to be committed
	Foreign      uint64 // transactions that a bridge had applied here and that were dropped (PostgreSQL 15)
	Markers      uint64
	BadMarkers   uint64 // messages with the markers' prefix that are none
	Lifted       uint64 // transactions stamped above their commit time
	LiftedLost   uint64 // of Lifted, forgotten before they were stable, for lack of room
	Reconnects   uint64
	// Away are changed rows whose home is another node; of large transactions, those of rolled back subtransactions too.
	Away uint64
}
