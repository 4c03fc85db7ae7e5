package conflict

import (
	"fmt"
	"slices"
	"strings"
)

// Rule says how concurrent writes of a unit, which is a column or a group of columns, become one value.
// Those up to Function take the written values as they are; the others merge them.
type Rule byte

// The rules.
const (
	Latest    Rule = iota // the later write's value
	First                 // the earlier one's
	Priority              // that of the node which stands first in Rules.Priority
	Home                  // that of the node whose row it is, as Rules.Home says
	Manual                // the later write's value, until a person has decided
	Function              // what Unit.Call makes of the values
	Delta                 // increments add up
	Max                   // the greatest value
	Min                   // the least value
	Set                   // elements that were added and removed, each for itself
	JSONMerge             // objects merge key by key
	TextMerge             // texts merge character by character
)

var ruleNames = []string{"last_writer_wins", "first_writer_wins", "origin_priority", "home_wins", "manual", "function", "delta", "max", "min",
	"set", "json_merge", "text_merge"}

// RuleByName returns the rule of that configuration name. The error lists the names that exist.
func RuleByName(name string) (Rule, error) {
	i := slices.Index(ruleNames, name)
	if i < 0 {
		return 0, fmt.Errorf("conflict rule %q does not exist; use one of %s", name, strings.Join(ruleNames, ", "))
	}
	return Rule(i), nil
}

// String gives the configuration name.
func (r Rule) String() string { return nameOf(ruleNames, byte(r)) }

// picks reports whether r takes the written values as they are.
func (r Rule) picks() bool { return r <= Function }

// Groups reports whether r works on a group of columns, too.
func (r Rule) Groups() bool { return r.picks() }

// Deletes says what a delete does to a concurrent write of the row.
type Deletes byte

// What can come of a delete beside a concurrent insert or update.
const (
	DeleteLatest Deletes = iota // the later one wins
	DeleteWins
	UpdateWins
)

var deletesNames = []string{"last_writer_wins", "delete_wins", "update_wins"}

// DeletesByName returns the choice of that configuration name. The error lists the names that exist.
func DeletesByName(name string) (Deletes, error) {
	i := slices.Index(deletesNames, name)
	if i < 0 {
		return 0, fmt.Errorf("conflict rule %q for deletes does not exist; use one of %s", name, strings.Join(deletesNames, ", "))
	}
	return Deletes(i), nil
}

// String gives the configuration name.
func (d Deletes) String() string { return nameOf(deletesNames, byte(d)) }

// Type says how the bytes of a merged column are to be understood. Rules that pick do not ask.
type Type byte

// The types that some rule understands, in PostgreSQL's binary send format.
const (
	Opaque Type = iota
	Int2
	Int4
	Int8
	Float4
	Float8
	Numeric
	Timestamp // int8: timestamp, timestamptz, time
	Date      // int4
	Bool
	UUID
	TextType // utf-8: text, varchar
	Array    // array_send, of any element type
	JSONB    // version byte 1 and text
	JSON     // text
)

var typeNames = []string{"opaque", "int2", "int4", "int8", "float4", "float8", "numeric", "timestamp", "date",
	"bool", "uuid", "text", "array", "jsonb", "json"}

// String gives PostgreSQL's name of the type, or of its kind.
func (t Type) String() string { return nameOf(typeNames, byte(t)) }

// understood lists by rule what it can merge; rules that pick take everything.
var understood = [...][]Type{
	Delta:     {Int2, Int4, Int8, Numeric},
	Max:       {Int2, Int4, Int8, Float4, Float8, Numeric, Timestamp, Date, Bool, UUID, TextType},
	Min:       {Int2, Int4, Int8, Float4, Float8, Numeric, Timestamp, Date, Bool, UUID, TextType},
	Set:       {Array, JSONB},
	JSONMerge: {JSONB, JSON},
	TextMerge: {TextType},
}

// Supports reports whether r works on t, and if not why, in words for an operator.
func (r Rule) Supports(t Type) error {
	switch {
	case int(r) >= len(ruleNames):
		return fmt.Errorf("there is no conflict rule %d", byte(r))
	case r.picks() || slices.Contains(understood[r], t):
		return nil
	case r == Delta && (t == Float4 || t == Float8):
		return fmt.Errorf("rule delta cannot add %s values: a sum of floats depends on the order of adding, which differs between nodes; use numeric or an integer type", t)
	}
	var names []string
	for _, u := range understood[r] {
		names = append(names, u.String())
	}
	return fmt.Errorf("rule %s does not work on %s; it takes %s", r, t, strings.Join(names, ", "))
}

func nameOf(names []string, i byte) string {
	if int(i) < len(names) {
		return names[i]
	}
	return fmt.Sprintf("unknown (%d)", i)
}
