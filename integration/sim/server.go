package sim

import (
	"slices"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
)

// FirstXID is the first transaction id that a Server gives out; the rows that it begins with are older.
const FirstXID = 100

const ancientXID = 50

// Version is a row as one transaction left it.
type Version struct {
	XID   uint32
	Cells []conflict.Cell
}

// slot is the place of a key. An owner is a transaction that has locked the row, or written it.
type slot struct {
	cur   *Version // what others see; nil if there is no row
	owner *Session
	pend  *Version
}

// Session is an open transaction.
type Session struct {
	xid     uint32
	written bool   // its commit record stands in the WAL, and nobody sees it yet
	touched []int  // places that it owns
	wrote   []bool // of those, whether it has written them
	emptied []int  // tables that it has truncated: nobody else gets at them
}

// Commit is what PostgreSQL remembers of a transaction (track_commit_timestamp).
type Commit struct {
	Origin int // replication origin: 0 for a user, else any number
	Stamp  origin.Stamp
	LSN    uint64
	Of     any // whose work it was: the caller's own note
}

// RecordKind says what stands in the WAL.
type RecordKind byte

// The kinds of records.
const (
	Committed RecordKind = iota
	Message              // a logical message, which is not part of a transaction
)

// Record is one record of the WAL.
type Record struct {
	Kind   RecordKind
	XID    uint32
	Commit Commit
	Rows   map[int]*Version // by place, nil for a deleted row
	Of     any              // a Message's content, or what else a commit has changed: the caller's own
}

// Server is a model of PostgreSQL: rows by place, commits in three steps (timestamp, record, visibility), WAL that a
// crash cuts. The zero value is not ready; NewServer makes one.
type Server struct {
	slots   []slot
	keys    int        // of each table: a place's table is its index through it
	begun   []*Version // what it was made with
	commits map[uint32]*Commit
	next    uint32
	open    []*Session

	WAL     []Record
	Flushed int // how many records are on disk
}

// NewServer makes a server whose rows are those given, nil for none, with so many keys in each table; a row's place is its
// index.
func NewServer(rows [][]conflict.Cell, keys int) *Server {
	s := &Server{keys: keys, slots: make([]slot, len(rows)), begun: make([]*Version, len(rows)), commits: map[uint32]*Commit{}, next: FirstXID}
	for i, r := range rows {
		if r != nil {
			s.begun[i] = &Version{ancientXID, r}
		}
		s.slots[i].cur = s.begun[i]
	}
	return s
}

// LSN is where record number n begins. The record before ends there.
func LSN(n int) uint64 { return uint64(n) + 1 }

// Begin opens a transaction.
func (s *Server) Begin() *Session {
	t := &Session{}
	s.open = append(s.open, t)
	return t
}

// XID gives the transaction an id, if it has none, and returns it.
func (s *Server) XID(t *Session) uint32 {
	if t.xid == 0 {
		t.xid = s.next
		s.next++
	}
	return t.xid
}

// Next is the id that is given out next.
func (s *Server) Next() uint32 { return s.next }

// XMin is the oldest id that a snapshot of now shows as running.
func (s *Server) XMin() uint32 {
	x := s.next
	for _, t := range s.open {
		if t.xid != 0 {
			x = min(x, t.xid)
		}
	}
	return x
}

// CommitOf is what is known of who wrote a version; nil for a transaction that has not committed, or rows from before.
func (s *Server) CommitOf(v *Version) *Commit { return s.commits[v.XID] }

// See returns the row that t sees at a place.
func (s *Server) See(t *Session, place int) *Version {
	if k := &s.slots[place]; t == nil || k.owner != t {
		return k.cur
	}
	return s.slots[place].pend
}

// Locked reports whether t must wait at a place: to write a row that is there, or to insert one.
func (s *Server) Locked(t *Session, place int, inserts bool) bool {
	for _, o := range s.open {
		if o != t && slices.Contains(o.emptied, place/s.keys) {
			return true
		}
	}
	k := &s.slots[place]
	return k.owner != nil && k.owner != t && (k.cur != nil || inserts)
}

// Lock is SELECT FOR UPDATE of a row that is not locked by others.
func (s *Server) Lock(t *Session, place int) {
	if k := &s.slots[place]; k.owner == nil && k.cur != nil {
		k.owner, k.pend = t, k.cur
		t.touched, t.wrote = append(t.touched, place), append(t.wrote, false)
	}
}

// Write makes the row at a place, which is not locked by others, look like cells; nil deletes it.
func (s *Server) Write(t *Session, place int, cells []conflict.Cell) {
	k := &s.slots[place]
	at := slices.Index(t.touched, place)
	if at < 0 {
		at = len(t.touched)
		t.touched, t.wrote = append(t.touched, place), append(t.wrote, true)
		k.owner = t
	}
	t.wrote[at] = true
	x := s.XID(t)
	k.pend = nil
	if cells != nil {
		k.pend = &Version{x, cells}
	}
}

// Truncate deletes the rows of a table; false if t must wait for somebody who has changed rows of it.
func (s *Server) Truncate(t *Session, table int) bool {
	for _, o := range s.open {
		if o != t && (slices.Contains(o.emptied, table) || slices.ContainsFunc(o.touched, func(place int) bool { return place/s.keys == table })) {
			return false
		}
	}
	s.XID(t)
	t.emptied = append(t.emptied, table)
	for place := table * s.keys; place < (table+1)*s.keys; place++ {
		if s.See(t, place) != nil {
			s.Write(t, place, nil)
		}
	}
	return true
}

// Record puts t's commit record into the WAL: from now on it is committed, and seen by nobody yet.
func (s *Server) Record(t *Session, c Commit, of any) {
	r := Record{XID: s.XID(t), Commit: c, Of: of}
	for i, place := range t.touched {
		if t.wrote[i] {
			if r.Rows == nil {
				r.Rows = map[int]*Version{}
			}
			r.Rows[place] = s.slots[place].pend
		}
	}
	r.Commit.LSN = LSN(len(s.WAL))
	s.WAL = append(s.WAL, r)
	s.commits[r.XID] = &s.WAL[len(s.WAL)-1].Commit
	t.written = true
}

// Show makes a recorded transaction visible and frees its locks.
func (s *Server) Show(t *Session) { s.end(t, true) }

// Rollback ends a transaction that has not been recorded.
func (s *Server) Rollback(t *Session) { s.end(t, false) }

func (s *Server) end(t *Session, commit bool) {
	for i, place := range t.touched {
		k := &s.slots[place]
		if commit && t.wrote[i] {
			k.cur = k.pend
		}
		k.owner, k.pend = nil, nil
	}
	s.open = slices.DeleteFunc(s.open, func(o *Session) bool { return o == t })
}

// Emit puts a logical message into the WAL.
func (s *Server) Emit(of any) { s.WAL = append(s.WAL, Record{Kind: Message, Of: of}) }

// Hidden reports whether a transaction below that LSN is recorded and not visible yet.
func (s *Server) Hidden(lsn uint64) bool {
	return slices.ContainsFunc(s.open, func(t *Session) bool { return t.written && s.commits[t.xid].LSN < lsn })
}

// Crash loses what is not on disk, and with it ends all sessions; then the rows are what the WAL says. Ids that the WAL
// does not name are given out again.
func (s *Server) Crash() {
	s.WAL = s.WAL[:s.Flushed:s.Flushed]
	s.open, s.next = nil, FirstXID
	clear(s.commits)
	for i := range s.slots {
		s.slots[i] = slot{cur: s.begun[i]}
	}
	for i := range s.WAL {
		r := &s.WAL[i]
		if m, ok := r.Of.(interface{ Below() uint32 }); ok {
			s.next = max(s.next, m.Below())
		}
		if r.Kind == Message {
			continue
		}
		s.next = max(s.next, r.XID+1)
		s.commits[r.XID] = &r.Commit
		for place, v := range r.Rows {
			s.slots[place].cur = v
		}
	}
}
