package integration

import (
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }
