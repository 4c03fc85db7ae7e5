package catalog

import (
	"fmt"
	"slices"
	"strings"
)

// Difference is one thing in which the tables of another node are not like this node's.
type Difference struct {
	Kind  Kind
	Table string // quoted for SQL; empty: of the whole database
	Text  string // in what
}

// Kind says what differs.
type Kind string

// The kinds of differences.
const (
	EncodingDiffers         Kind = "encoding"
	DefaultCollationDiffers Kind = "default-collation"
	TableMissingHere        Kind = "table-here"
	TableMissingThere       Kind = "table-there"
	ColumnDiffers           Kind = "column" // is on one of the nodes only, or of another type
	ColumnWider             Kind = "wider"  // an integer, where one node has room for more
	TypeDiffers             Kind = "type"   // of one name, and not the same
	NullDiffers             Kind = "null"
	KeyDiffers              Kind = "key"
	EqualityDiffers         Kind = "equality" // what is equal on one node is not on the other
	CollationDiffers        Kind = "collation"
	UniqueDiffers           Kind = "unique"
	CheckDiffers            Kind = "check"
)

// Differences says in what the tables of node there differ from those of node here, in the order of tables.
func Differences(here, there *Summary) []Difference {
	var d differences
	if here.Encoding != there.Encoding {
		d.add(EncodingDiffers, "", "the database's encoding is %s here and %s there", here.Encoding, there.Encoding)
	}
	if here.Collation != there.Collation {
		d.add(DefaultCollationDiffers, "", "the database's collation is %s here and %s there", here.Collation, there.Collation)
	}
	for i := range here.Tables {
		t := &here.Tables[i]
		if u := there.table(t.Name); u != nil {
			d.table(t, u)
		} else {
			d.add(TableMissingThere, t.Name, "is replicated here and not there")
		}
	}
	for i := range there.Tables {
		if t := &there.Tables[i]; here.table(t.Name) == nil {
			d.add(TableMissingHere, t.Name, "is replicated there and not here")
		}
	}
	return d.all
}

// differences gathers them.
type differences struct{ all []Difference }

func (d *differences) add(k Kind, table, format string, args ...any) {
	d.all = append(d.all, Difference{k, table, fmt.Sprintf(format, args...)})
}

func (d *differences) table(t, u *Table) {
	for i := range t.Columns {
		c := &t.Columns[i]
		if o := u.column(c.Name); o != nil {
			d.column(t, u, c, o)
		} else if !c.Generated {
			d.add(ColumnDiffers, t.Name, "has column %s here and not there", quote(c.Name))
		}
	}
	for i := range u.Columns {
		if c := &u.Columns[i]; t.column(c.Name) == nil && !c.Generated {
			d.add(ColumnDiffers, t.Name, "has column %s there and not here", quote(c.Name))
		}
	}
	if !slices.Equal(t.Key, u.Key) {
		d.add(KeyDiffers, t.Name, "has the key (%s) here and (%s) there", columnList(t.Key), columnList(u.Key))
	}
	d.lists(UniqueDiffers, t.Name, "a unique index", t.Unique, u.Unique)
	d.lists(CheckDiffers, t.Name, "the constraint", t.Checks, u.Checks)
}

func columnList(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = quote(n)
	}
	return strings.Join(quoted, ", ")
}

// lists tells what stands in one of two lists only.
func (d *differences) lists(k Kind, table, what string, here, there []string) {
	for _, x := range []struct {
		some, not []string
		where     string
	}{{here, there, "here and not there"}, {there, here, "there and not here"}} {
		for _, text := range x.some {
			if !slices.Contains(x.not, text) {
				d.add(k, table, "has %s %s %s", what, text, x.where)
			}
		}
	}
}

func (d *differences) column(t, u *Table, c, o *Column) {
	name := quote(c.Name)
	switch {
	case c.Type != o.Type && integers(c.Type, o.Type):
		d.add(ColumnWider, t.Name, "has column %s as %s here and as %s there", name, c.Type, o.Type)
	case c.Type != o.Type:
		d.add(ColumnDiffers, t.Name, "has column %s as %s here and as %s there", name, c.Type, o.Type)
	case c.Detail != o.Detail:
		d.add(TypeDiffers, t.Name, "has column %s of type %s, which is %s here and %s there", name, c.Type, c.Detail, o.Detail)
	}
	if c.Generated != o.Generated {
		d.add(ColumnDiffers, t.Name, "has column %s, which is generated on one of the two nodes only", name)
	}
	if c.NotNull != o.NotNull {
		where := "here and not there"
		if o.NotNull {
			where = "there and not here"
		}
		d.add(NullDiffers, t.Name, "has column %s NOT NULL %s", name, where)
	}
	switch {
	case c.Nondeterministic != o.Nondeterministic:
		d.add(EqualityDiffers, t.Name, "has column %s with collation %s here and %s there, and one of these takes for equal what the other does not", name, orDefault(c.Collation), orDefault(o.Collation))
	case c.Collation != o.Collation:
		d.add(CollationDiffers, t.Name, "has column %s with collation %s here and %s there", name, orDefault(c.Collation), orDefault(o.Collation))
	}
}

func orDefault(collation string) string {
	if collation == "" {
		return "the database's"
	}
	return collation
}

// integers reports whether both are integer types.
func integers(a, b string) bool {
	return most(a) > 0 && most(b) > 0
}
