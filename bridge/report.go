package bridge

import (
	"time"

	"github.com/pgbridge/pgbridge/stream"
)

// Report is what an operator asks a bridge: where it stands, what waits, and what to do about it. Its
// JSON is that of "pgbridge status --json"; keys are those of the log. Counters are since the bridge
// started.
type Report struct {
	Cluster     string    `json:"cluster"`
	Node        string    `json:"node"`
	Epoch       uint32    `json:"epoch"`        // of this node's numbering
	WriterEpoch uint64    `json:"writer_epoch"` // of this bridge's fence
	At          time.Time `json:"at"`           // when the report was made
	// Well: its parts run and no alarm needs a person. Verdict says so in a sentence, or what is not well.
	Well    bool   `json:"well"`
	Verdict string `json:"verdict"`
	// Waiting says why the bridge as a whole stands still, with the mend; empty while its parts run.
	Waiting string `json:"waiting,omitempty"`
	// Seq and Stamp are of the last local transaction that was captured.
	Seq   uint64    `json:"seq"`
	Stamp time.Time `json:"stamp,omitzero"`

	Capture   CaptureReport   `json:"capture"`
	Slot      SlotReport      `json:"slot"`
	Publisher PublisherReport `json:"publisher"`
	Stream    StreamReport    `json:"stream"`
	// Quarantined is how many rows are kept out of their tables since later ones have a value that must be unique.
	Quarantined int `json:"quarantined"`
	// Owed is how many rows wait for the node that wrote them to write them again, with large values that an update left alone.
	Owed int `json:"owed"`

	// WrittenAway are rows that users have written here since the bridge began to capture, and whose home is another node.
	WrittenAway uint64 `json:"written_away,omitempty"`

	// ConflictsPerMinute are those of the last minute, or since the bridge started.
	ConflictsPerMinute uint64 `json:"conflicts_per_minute"`

	// Nodes are the other nodes, by name: how far they are behind this one.
	Nodes []NodeReport `json:"nodes"`
	// Compared is what the last comparison of this node's rows with all others' has found; nil if there was none.
	Compared *RowsReport `json:"compared,omitempty"`
	// Joining is how far this node has come with joining; nil if it does not join.
	Joining *JoiningReport `json:"joining,omitempty"`

	// LetGo are the nodes that were away for too long, by name: what they lack is gone from the own stream.
	LetGo []LetGoReport `json:"let_go,omitempty"`

	// Conflicts counts those that were recorded since the bridge began to apply, by kind.
	Conflicts map[string]uint64 `json:"conflicts,omitempty"`
	// Shadow is what a node in shadow mode has found; nil of one that is live.
	Shadow *ShadowReport `json:"shadow,omitempty"`
	// Clocks are the other nodes whose clocks were compared with this one's lately, by name.
	Clocks []ClockReport `json:"clocks,omitempty"`

	// BrokerRefused is what the NATS server inside the bridge has refused; nil: there is none inside.
	BrokerRefused *stream.Refusals `json:"broker_refused,omitempty"`
	// SignInsRefused is how many sign-ins to the console were refused since the bridge started.
	SignInsRefused uint64 `json:"sign_ins_refused,omitempty"`

	Links  []LinkReport `json:"links"`  // one per node that is read from, by name
	Alarms []Alarm      `json:"alarms"` // what a person should look at, gravest first
}

// CaptureReport is how the local WAL is read.
type CaptureReport struct {
	State   string `json:"state"` // streaming or connecting; empty while the bridge does not run
	Waiting string `json:"waiting,omitempty"`
}

// SlotReport is how much of the local WAL has been read, and what its slot holds back.
type SlotReport struct {
	Slot         string `json:"slot"`
	State        string `json:"state"`         // active, inactive, invalidated or missing
	CapturedLSN  string `json:"captured_lsn"`  // read up to here, as in "0/16B3748"
	ConfirmedLSN string `json:"confirmed_lsn"` // safe at the broker up to here
	WALHeldBytes int64  `json:"wal_held_bytes"`
	// Standbys are the physical slots, with commas, whose standbys have all that other nodes have: these can take over.
	Standbys string `json:"standbys,omitempty"`
}

// PublisherReport is how the own stream is written.
type PublisherReport struct {
	State          string `json:"state"` // publishing, recovering, full, idle or stopped
	Waiting        string `json:"waiting,omitempty"`
	FramesInFlight int    `json:"frames_in_flight"`
	DurableSeq     uint64 `json:"durable_seq"` // last own transaction that is safe at the broker
}

// StreamReport is what the own stream holds for the others.
type StreamReport struct {
	Stream         string `json:"stream"`
	Bytes          uint64 `json:"bytes"`
	LimitBytes     uint64 `json:"limit_bytes"`      // in force; 0: no limit
	FirstStreamSeq uint64 `json:"first_stream_seq"` // frames; 0 while there is none
	LastStreamSeq  uint64 `json:"last_stream_seq"`
}

// NodeReport is how far another node is behind this one, by what it has told of having seen.
type NodeReport struct {
	Node    string `json:"node"`
	SeenSeq uint64 `json:"seen_seq"` // it has own transactions up to this one, at least
	// Unknown: it has told nothing since the bridge started, and there are transactions that it may lack.
	Unknown      bool    `json:"unknown,omitempty"`
	Transactions uint64  `json:"transactions"` // that it lacks
	Bytes        uint64  `json:"bytes"`        // of their frames, as far as they are remembered
	Seconds      float64 `json:"seconds"`      // age of the oldest
}

// JoiningReport is how far a node has come with joining.
type JoiningReport struct {
	From  string `json:"from"`  // the node that gives the rows
	State string `json:"state"` // copying, or copied: a bridge takes in what came meanwhile
	Rows  int64  `json:"rows"`  // copied
	About int64  `json:"about"` // about so many rows are to be
	Bytes int64  `json:"bytes"` // copied
}

// LetGoReport is a node that lacks own transactions which are gone from the own stream, and so must get the rows from others.
type LetGoReport struct {
	Node         string    `json:"node"`
	SeenSeq      uint64    `json:"seen_seq"`     // it has told of having seen own transactions up to this one
	GoneSeq      uint64    `json:"gone_seq"`     // those up to this one are gone
	Transactions uint64    `json:"transactions"` // in between
	Since        time.Time `json:"since"`
}

// ClockReport is how far another node's clock is apart.
type ClockReport struct {
	Node          string  `json:"node"`
	AheadSeconds  float64 `json:"ahead_seconds"`  // of this node's, negative if it is behind
	WithinSeconds float64 `json:"within_seconds"` // known within so much
}

// LinkReport is how far another node's transactions have come here.
type LinkReport struct {
	Link   string `json:"link"`   // the node that is read from
	URL    string `json:"url"`    // without password
	Origin string `json:"origin"` // whose transactions the figures count
	State  string `json:"state"`  // connected, away or waiting
	// Waiting says what it waits for, with the mend; empty if State is connected.
	Waiting      string    `json:"waiting,omitempty"`
	AppliedSeq   uint64    `json:"applied_seq"`
	AppliedStamp time.Time `json:"applied_stamp,omitzero"`
	ReceivedSeq  uint64    `json:"received_seq"`
	LagSeconds   float64   `json:"lag_seconds"` // age of the oldest transaction that arrived and is not applied
	Queued       int       `json:"queued"`      // transactions that have arrived and are not applied
	QueuedBytes  int64     `json:"queued_bytes"`
	Conflicts    uint64    `json:"conflicts"`
	Parked       uint64    `json:"parked"`            // transactions put aside: they cannot be applied here
	Refused      uint64    `json:"refused,omitempty"` // how often frames were met that their author has not signed
	Again        uint64    `json:"again,omitempty"`   // transactions that came once more since the start, and were passed over
	// Disagrees: the node decides conflicts by other policies and is not read until they are the same.
	Disagrees bool `json:"disagrees,omitempty"`
}

// Severity says how soon a person must look.
type Severity string

// The severities of an [Alarm], gravest first.
const (
	SeverityError   Severity = "error"   // a person must act
	SeverityWarning Severity = "warning" // a person should know
)

// Alarm is one thing that needs a person.
type Alarm struct {
	Code     string   `json:"code"` // kebab-case and stable, such as slot-invalidated
	Severity Severity `json:"severity"`
	Text     string   `json:"text"` // the thing and the fault
	Mend     string   `json:"mend"` // what to do
}
