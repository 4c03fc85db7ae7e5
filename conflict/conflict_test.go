package conflict

import (
	"math/rand"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
)

func version(s int, o string) origin.Version {
	return origin.Version{Stamp: origin.Stamp(s), Origin: origin.Origin{Node: o, Epoch: 1}}
}

func TestLastWriterWins(t *testing.T) {
	tests := []struct {
		name string
		c    Case
		want Decision
	}{
		{"later remote wins", Case{Update, version(2, "a"), Local{Version: version(1, "b")}, false}, Decision{true, true, UpdateUpdate}},
		{"earlier remote loses", Case{Update, version(1, "a"), Local{Version: version(2, "b")}, false}, Decision{false, true, UpdateUpdate}},
		{"equal stamps: the origin decides", Case{Update, version(1, "b"), Local{Version: version(1, "a")}, false}, Decision{true, true, UpdateUpdate}},
		{"seen is no conflict", Case{Update, version(2, "a"), Local{Version: version(1, "b")}, true}, Decision{RemoteWins: true}},
		{"a tombstone beats an older update", Case{Update, version(1, "a"), Local{Version: version(2, "b"), Deleted: true}, false}, Decision{false, true, UpdateDelete}},
		{"an older tombstone loses to an insert", Case{Insert, version(3, "a"), Local{Version: version(2, "b"), Deleted: true}, false}, Decision{true, true, InsertDelete}},
		{"an old delete loses to an update", Case{Delete, version(1, "a"), Local{Version: version(2, "b")}, false}, Decision{false, true, DeleteUpdate}},
		{"ancient rows always give way", Case{Write: Update, Remote: version(1, "a"), Local: Local{Ancient: true}}, Decision{RemoteWins: true}},
		{"absent rows always give way", Case{Write: Update, Remote: version(1, "a"), Local: Local{Absent: true}}, Decision{RemoteWins: true}},
		{"declared but not seen is a real conflict (R9)", Case{Update, version(1, "a"), Local{Version: version(2, "b")}, true}, Decision{false, true, UpdateUpdate}},
	}
	for _, tt := range tests {
		if got := LastWriterWins(tt.c); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// TestOneWinnerInAnyOrder: whatever the order in which versions arrive, the same one is left.
func TestOneWinnerInAnyOrder(t *testing.T) {
	r := rand.New(rand.NewSource(7))
	for range 2000 {
		versions := make([]origin.Version, 2+r.Intn(5))
		for i := range versions {
			versions[i] = version(r.Intn(4), string(rune('a'+i)))
		}
		settle := func() origin.Version {
			at := versions[0]
			for _, v := range versions[1:] {
				if LastWriterWins(Case{Write: Update, Remote: v, Local: Local{Version: at}}).RemoteWins {
					at = v
				}
			}
			return at
		}
		want := settle()
		r.Shuffle(len(versions), func(i, j int) { versions[i], versions[j] = versions[j], versions[i] })
		if got := settle(); got != want {
			t.Fatalf("order %v leaves %v, another order %v", versions, got, want)
		}
	}
}

// TestPitfall11EqualStamps: the origin's name decides between equal stamps, the same whichever of the two was there first.
func TestPitfall11EqualStamps(t *testing.T) {
	for _, write := range []Write{Insert, Update, Delete} {
		for _, deleted := range []bool{false, true} {
			came := LastWriterWins(Case{Write: write, Remote: version(1, "b"), Local: Local{Version: version(1, "a"), Deleted: deleted}})
			was := LastWriterWins(Case{Write: write, Remote: version(1, "a"), Local: Local{Version: version(1, "b"), Deleted: deleted}})
			if !came.RemoteWins || was.RemoteWins {
				t.Errorf("write %v, deleted %t: b wins %t when it comes, loses %t when it was there", write, deleted, came.RemoteWins, was.RemoteWins)
			}
		}
	}
}

func TestUnknownPolicyIsRefused(t *testing.T) {
	if _, err := ByName("arrival"); err == nil {
		t.Fatal("an arrival-order policy must not exist")
	}
}
