package doctor

import (
	"fmt"
	"strings"
	"time"

	"github.com/pgbridge/pgbridge/capture"
)

// reasons say why what capture finds matters, by its code.
var reasons = map[string]string{
	capture.CodeUnreachable:        "no change is read and none is written until the server answers",
	capture.CodeConnect:            "no change is read and none is written without a session",
	capture.CodeStandby:            "a standby takes no writes, neither of users nor of other nodes",
	capture.CodeVersion:            "what the bridge needs of logical decoding is not there",
	capture.CodeWALLevel:           "the WAL then lacks what logical decoding needs",
	capture.CodeCommitTimestamp:    "each row's version is its commit's origin and time: conflicts are decided by these",
	capture.CodeSlots:              "the slot, from which changes are read, cannot be made",
	capture.CodeWALSenders:         "changes are read over a walsender",
	capture.CodePrivilege:          "only a role with this attribute may read a slot",
	capture.CodePublicationMissing: "what is not published is not replicated",
	capture.CodePublication:        "what is not published is not replicated, without a word",
	capture.CodeSlotMissing:        "without a slot the server forgets changes before they are read",
	capture.CodeSlotKind:           "changes cannot be read from it",
	capture.CodeSlotInvalidated:    "changes were lost: this node cannot send what was committed since",
	capture.CodeTableColumns:       "nodes that have the values of a column must come to the same rows as those that have NULL there",
	capture.CodeTableIdentity:      "concurrent writes are merged by what each of them changed, which takes the old values",
	capture.CodeTableKey:           "rows are found on other nodes by their key",
	capture.CodeTableRows:          "by the key alone a row is known to be on this node or on others, and goes from these to those",
	capture.CodeTableUnlogged:      "what is not in the WAL cannot be replicated",
	capture.CodeOriginForeign:      "what it writes would be taken for a bridge's, and reach no other node",
	capture.CodeTables:             "it is not clear which tables are to be replicated",
	capture.CodeReaderWritable:     "what users write on a reader goes to all nodes, as from any other one",
	capture.CodeFailover:           "a promoted standby would have no slot to go on from",
}

// foundByCapture are the findings of capture's own checks, which also keep a bridge from starting.
func foundByCapture(f *Facts) []Finding {
	var all []Finding
	for _, x := range f.Capture {
		severity := Error
		if fresh := x.Code == capture.CodeSlotMissing || x.Code == capture.CodePublicationMissing; fresh && !f.HasRun {
			severity = Warning // setup makes it, or the first run
		}
		all = append(all, Finding{x.Code, severity, x.Thing + " " + x.Fault, reasons[x.Code], x.Mend})
	}
	return all
}

// durability looks for what makes a crash of the server lose commits that other nodes have.
func durability(f *Facts) []Finding {
	var off []string
	for _, name := range []string{"fsync", "full_page_writes"} {
		if f.Server.Settings[name] == "off" {
			off = append(off, name)
		}
	}
	if off == nil {
		return nil
	}
	return one("server-durability", Warning, "setting "+strings.Join(off, " and ")+" is off",
		"after a crash of the machine the server may lack commits that other nodes have already, or be damaged; its node must then be set up anew",
		fmt.Sprintf("run ALTER SYSTEM SET %s = on, and SELECT pg_reload_conf()", strings.Join(off, " = on; ALTER SYSTEM SET ")))
}

// walLimit: a slot without a limit fills the disk while its bridge is away.
func walLimit(f *Facts) []Finding {
	if f.Server.Settings["max_slot_wal_keep_size"] != "-1" {
		return nil
	}
	return one("wal-unbounded", Warning, "setting max_slot_wal_keep_size is -1, so a slot may hold any amount of WAL",
		"while the bridge or its broker is away the WAL grows until the disk is full, and then the server stops",
		"run ALTER SYSTEM SET max_slot_wal_keep_size = '50GB' (what the disk can bear), and SELECT pg_reload_conf(); beyond it the slot is lost, and the node must get its rows anew")
}

// heldShare is the part of max_slot_wal_keep_size from which on what a slot holds is told.
const heldShare = 0.5

// walHeld looks at how much WAL the slot holds, and how near it is to being lost.
func walHeld(f *Facts) []Finding {
	s := f.Server.Slot
	if s == nil {
		return nil
	}
	const why = "when the server removes WAL that the slot needs, the slot is invalidated: what was committed since cannot be sent"
	const mend = "start the bridge, or bring its broker back, soon; or run ALTER SYSTEM SET max_slot_wal_keep_size to more, and SELECT pg_reload_conf()"
	switch {
	case s.Status == "unreserved":
		return one("wal-unreserved", Error, fmt.Sprintf("slot %q needs WAL that the server removes at its next checkpoint", f.Slot), why, mend)
	case s.Safe >= 0 && float64(s.Held) > heldShare*float64(s.Held+s.Safe):
		return one("wal-held", Warning, fmt.Sprintf("slot %q holds %s of WAL, and %s more until it is lost", f.Slot, size(s.Held), size(s.Safe)), why, mend)
	}
	return nil
}

// milliseconds reads a setting that is a time.
func (s *Server) milliseconds(name string) time.Duration {
	var n int64
	if _, err := fmt.Sscan(s.Settings[name], &n); err != nil {
		return 0 // the version lacks it
	}
	return time.Duration(n) * time.Millisecond
}

// slotTimeout: servers from 18 on may give idle slots up.
func slotTimeout(f *Facts) []Finding {
	d := f.Server.milliseconds("idle_replication_slot_timeout")
	if d <= 0 {
		return nil
	}
	return one("slot-timeout", Warning, fmt.Sprintf("setting idle_replication_slot_timeout is %s", d),
		"when the bridge is away for longer, the server invalidates the slot, and what was committed since cannot be sent",
		"run ALTER SYSTEM SET idle_replication_slot_timeout = 0, and SELECT pg_reload_conf(); max_slot_wal_keep_size bounds what a slot holds")
}

// senderTimeout: the walsender ends sessions that say nothing for so long.
func senderTimeout(f *Facts) []Finding {
	d, interval := f.Server.milliseconds("wal_sender_timeout"), f.Config.Capture.StatusInterval
	if d <= 0 || d >= 3*interval {
		return nil
	}
	return one("sender-timeout", Warning, fmt.Sprintf("setting wal_sender_timeout is %s, and capture.status_interval %s", d, interval),
		"the server ends the connection that changes are read over when it hears nothing for so long, and reading begins again",
		fmt.Sprintf("set capture.status_interval: %s, or run ALTER SYSTEM SET wal_sender_timeout = '60s', and SELECT pg_reload_conf()", max(d/3, time.Second).Truncate(time.Second)))
}

// origins: the bridge has a replication origin for each other node and two of its own, each in use.
func origins(f *Facts) []Finding {
	need, s := len(f.Config.Topology.Nodes)+1, f.Server
	if f.HasRun {
		need = 0 // its own are among those that are there
	}
	if s.Origins+need <= s.MaxOrigins {
		return nil
	}
	name := "max_active_replication_origins"
	if s.Version < 180000 {
		name = "max_replication_slots"
	}
	return one("replication-origins", Error, fmt.Sprintf("setting %s is %d; %d replication origins are there, and this node needs %d more", name, s.MaxOrigins, s.Origins, need),
		"what other nodes write is applied in sessions that have a replication origin each",
		fmt.Sprintf("run ALTER SYSTEM SET %s = %d, and restart the server", name, s.Origins+need+4))
}

// sessions is about how many sessions a bridge has beside one for each other node.
const sessions = 12

func connections(f *Facts) []Finding {
	s := f.Server
	need := sessions + len(f.Config.Topology.Nodes)
	if f.Bridge != nil || s.Connections+need <= s.MaxConnections {
		return nil
	}
	return one("connections", Warning, fmt.Sprintf("%d of %d connections are taken, and a bridge needs about %d", s.Connections, s.MaxConnections, need),
		"a bridge that gets no session starts again and again, and users who get none see errors",
		fmt.Sprintf("run ALTER SYSTEM SET max_connections = %d, and restart the server; or end sessions that nobody needs", s.MaxConnections+need))
}

func oldTransactions(f *Facts) []Finding {
	var all []Finding
	for _, t := range f.Server.Old {
		all = append(all, Finding{"old-transaction", Warning, fmt.Sprintf("%s has a transaction that is open for %s", t.Who, t.Age.Round(time.Minute)),
			"the WAL since it began is kept, and rows that it has locked make other nodes' transactions wait",
			"end it: " + t.Mend})
	}
	return all
}

func collationVersions(f *Facts) []Finding {
	var all []Finding
	for _, c := range f.Server.Collations {
		all = append(all, Finding{"collation-version", Warning, c + " was made with another version of its library than the server has now",
			"indexes on such text may not find rows that are there: a key could then be there twice",
			fmt.Sprintf("run REINDEX DATABASE %s, and then ALTER %s REFRESH VERSION", f.Server.Role.Database, c)})
	}
	return all
}

func encoding(f *Facts) []Finding {
	if f.Server.Encoding == "UTF8" {
		return nil
	}
	return one("encoding", Warning, "the database's encoding is "+f.Server.Encoding,
		"text of other nodes that this encoding lacks is refused here, and its transaction parked",
		"dump the database and restore it into one that is made WITH ENCODING 'UTF8', if other nodes have text that this encoding lacks")
}

// clockNoise is how far two clocks may be apart without a word.
const clockNoise = time.Second

func databaseClock(f *Facts) []Finding {
	s := f.Server
	if off := s.Clock.Abs() - s.ClockWithin; off < clockNoise {
		return nil
	}
	return one("database-clock", Warning, fmt.Sprintf("the clock of the database's machine is %s from that of the bridge's", s.Clock.Abs().Round(time.Millisecond)),
		"stamps come from the database's clock: of concurrent writes, those of the node whose clock is ahead win",
		"run NTP or chrony on both machines")
}
