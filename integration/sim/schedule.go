package sim

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/pgbridge/pgbridge/conflict"
)

// Schedule is all that happens in one simulation. The same schedule always has the same outcome.
type Schedule struct {
	Seed        uint64
	Nodes, Keys int // keys of each table, from 1
	Layout      int // of the merged table
	Deletes     conflict.Deletes
	Full        bool    // the plain table's replica identity is FULL
	Filled      bool    // all rows are there before the first event, on every node
	Grain       int64   // microseconds that share one commit time: stamps are equal
	Skew        []int64 // microseconds by which each node's clock is ahead at first
	InTurn      bool    // each local transaction begins when everything before it is everywhere
	Links       []Link  // nodes hand on what others cannot read from its author; nil: all read from all
	Events      []Event
}

// Link is one between two nodes, in both directions.
type Link struct{ A, B int }

// Kind says what happens.
type Kind byte

// The kinds of events. Those from Begin on are the logical part, which real servers can follow.
const (
	Step    Kind = 's' // a user's open transaction goes on: its next statement, its timestamp, its record, its visibility
	Flush   Kind = 'f' // some more of the WAL is on disk
	Capture Kind = 'c' // capture reads some records
	Deliver Kind = 'd' // some frames of Peer arrive
	Apply   Kind = 'a' // the worker of Peer takes a step
	Take    Kind = 't' // rows are taken back
	Journal Kind = 'j' // own writes come into the journal
	Mark    Kind = 'm' // a closing marker
	Confirm Kind = 'o' // the slot is confirmed
	Purge   Kind = 'p' // what is stable is forgotten
	Clock   Kind = 'k' // the clock is set, N microseconds ahead of true time
	Crash   Kind = 'x' // PostgreSQL crashes, and with it the bridge's life ends
	Begin   Kind = 'b' // a user begins a transaction of Ops
	Restart Kind = 'r' // the bridge is killed and comes back
	Cut     Kind = 'u' // Peer cannot be reached
	Heal    Kind = 'h' // it can be again
	Down    Kind = 'n' // the node's bridge and broker are gone, until
	Up      Kind = 'v' // they come back
)

// Event is one thing that happens on a node.
type Event struct {
	Kind Kind
	Node int
	Peer int
	N    int64 // how much, or which one of several
	Ops  []Op
}

// Logical reports whether the event can be repeated on a real server.
func (e *Event) Logical() bool { return strings.IndexByte("bruh", byte(e.Kind)) >= 0 }

// Op is one statement of a user.
type Op struct {
	Kind   OpKind
	Merged bool // of the merged table, not the plain one
	Key    int
	To     int    // the new key, for Move
	Arg    uint64 // what the new values are made of
}

// OpKind says what a statement does.
type OpKind byte

// The kinds of statements. What finds no row, or for Move one at the new key, does nothing.
const (
	Put      OpKind = 'w' // updates the row, or inserts it
	Patch    OpKind = 'p' // updates the row and leaves the large value of a plain table unchanged, or inserts it
	Remove   OpKind = 'd'
	Move     OpKind = 'm' // changes the key
	Truncate OpKind = 't'
)

// Tables are the schedule's tables: the plain one and the merged one.
func (s *Schedule) Tables() [2]*Table {
	return [2]*Table{plainTable(), mergedTable(s.Layout, s.Deletes)}
}

// String gives the schedule in the form that Parse reads, one event on a line.
func (s *Schedule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d nodes %d keys %d layout %d deletes %d full %t filled %t grain %d turn %t", s.Seed, s.Nodes, s.Keys, s.Layout,
		s.Deletes, s.Full, s.Filled, s.Grain, s.InTurn)
	for i, l := range s.Links {
		if i == 0 {
			b.WriteString(" links")
		}
		fmt.Fprintf(&b, " %s%s", NodeName(l.A), NodeName(l.B))
	}
	b.WriteString(" skew")
	for _, k := range s.Skew {
		fmt.Fprintf(&b, " %d", k)
	}
	b.WriteByte('\n')
	for i := range s.Events {
		e := &s.Events[i]
		fmt.Fprintf(&b, "%c %s %s %d", e.Kind, NodeName(e.Node), NodeName(e.Peer), e.N)
		for _, o := range e.Ops {
			table := "p"
			if o.Merged {
				table = "m"
			}
			fmt.Fprintf(&b, " %c:%s:%d:%d:%d", o.Kind, table, o.Key, o.To, o.Arg)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// NodeName is the name of a node by its number.
func NodeName(n int) string { return string(rune('a' + n)) }

// Parse reads what String has written.
func Parse(text string) (*Schedule, error) {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	s := &Schedule{}
	head, skew, ok := strings.Cut(lines[0], " skew")
	if !ok {
		return nil, errors.New("schedule has no head line")
	}
	if _, err := fmt.Sscanf(head, "seed %d nodes %d keys %d layout %d deletes %d full %t filled %t grain %d turn %t", &s.Seed, &s.Nodes, &s.Keys,
		&s.Layout, &s.Deletes, &s.Full, &s.Filled, &s.Grain, &s.InTurn); err != nil {
		return nil, fmt.Errorf("head of a schedule: %w", err)
	}
	if _, links, ok := strings.Cut(head, " links"); ok {
		for _, f := range strings.Fields(links) {
			if len(f) != 2 {
				return nil, fmt.Errorf("link %q of a schedule", f)
			}
			s.Links = append(s.Links, Link{int(f[0] - 'a'), int(f[1] - 'a')})
		}
	}
	for _, f := range strings.Fields(skew) {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("skew of a schedule: %w", err)
		}
		s.Skew = append(s.Skew, n)
	}
	for _, line := range lines[1:] {
		e, err := parseEvent(strings.Fields(line))
		if err != nil {
			return nil, fmt.Errorf("event %q: %w", line, err)
		}
		s.Events = append(s.Events, e)
	}
	return s, nil
}

func parseEvent(fields []string) (Event, error) {
	var e Event
	if len(fields) < 4 || len(fields[0]) != 1 || len(fields[1]) != 1 || len(fields[2]) != 1 {
		return e, errors.New("want kind, node, peer and number")
	}
	e.Kind, e.Node, e.Peer = Kind(fields[0][0]), int(fields[1][0]-'a'), int(fields[2][0]-'a')
	var err error
	if e.N, err = strconv.ParseInt(fields[3], 10, 64); err != nil {
		return e, err
	}
	for _, f := range fields[4:] {
		var o Op
		var kind, table rune
		if _, err := fmt.Sscanf(f, "%c:%c:%d:%d:%d", &kind, &table, &o.Key, &o.To, &o.Arg); err != nil {
			return e, err
		}
		o.Kind, o.Merged = OpKind(kind), table == 'm'
		e.Ops = append(e.Ops, o)
	}
	return e, nil
}
