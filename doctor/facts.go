package doctor

import (
	"time"

	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/catalog"
	"github.com/pgbridge/pgbridge/config"
)

// Facts are what checks look at. What could not be learnt is nil; Unknown says why.
type Facts struct {
	Config *config.Config
	Now    time.Time
	Slot   string // the name of the node's slot and publication

	Capture []capture.Finding // of capture's own checks
	HasRun  bool              // a bridge has run for this node
	Server  *Server           // the primary
	Tables  *catalog.Summary  // its replicated tables
	Broker  *Broker           // that of the node's own stream
	Disks   []Disk
	Certs   []Certificate
	Nodes   []Node // the others, by name
	Bridge  *Bridge
	// Unknown is why a part could not be learnt, by the name of the part.
	Unknown map[Part]string
}

// Part is a part of Facts.
type Part string

// The parts.
const (
	PartServer Part = "server"
	PartTables Part = "tables"
	PartBroker Part = "broker"
	PartDisks  Part = "disks"
	PartBridge Part = "bridge"
	PartNodes  Part = "nodes"
)

// Broker is what was learnt of the NATS server with the node's own stream.
type Broker struct {
	URL        string // without user and password
	Problem    string // why it cannot be used; empty: it can
	MaxPayload int64
	StoreLimit int64 // bytes of the account; -1: none
	Stored     uint64
	Stream     *Stream // nil: there is none yet
}

// Stream is how the broker keeps the node's own stream.
type Stream struct {
	Name            string
	Bytes, MaxBytes int64 // MaxBytes -1: no limit
	Replicas        int
	Clustered       bool // the server is one of a cluster
}

// Disk is a file system that something of the node is on.
type Disk struct {
	What string // "data_dir"
	Path string
	Free int64 // bytes
	// Need is what may still be written there, by the limits that are configured.
	Need  int64
	Limit string // the keys of these
}

// Certificate is one that a connection of the node's rests on.
type Certificate struct {
	Of   string // whose: "postgresql at db:5432"
	Ends time.Time
	Mend string
}

// Node is another node, as it answered.
type Node struct {
	Name    string
	Problem string                          // why it could not be asked; empty: it answered
	Tables  *catalog.Summary                // nil if it did not
	Without func(schema, table string) bool // tables that it does not have (topology.residency); nil: it has all
	Graph   string                          // its topology
	Policy  map[string]string
	// Ahead is how far its bridge's clock is ahead of this machine's, known to half of Within.
	Ahead, Within time.Duration
	// Behind is how many transactions of this node it has not applied, of those that were captured when it was asked.
	Behind uint64
}

// Bridge is what the bridge that runs here says.
type Bridge struct {
	Waiting string
	Alarms  []Finding // its alarms; Why is empty
	Probe   *Probe    // nil if it could not be made
	Failed  string    // why not
}

// Probe is the way of a write from the WAL into the broker and back, and to the other nodes.
type Probe struct {
	WAL    time.Duration `json:"wal"`    // until it was read from the WAL
	Broker time.Duration `json:"broker"` // until its frame was stored at the broker, and could be read there
}
