package server

import (
	"time"

	"github.com/clustermesh/clustermesh/kvstore/purse"
)

// peakTime is how much a peer may take at once while it uses up its burst.
const peakTime = 100 * time.Millisecond

// requestPurses are for what a peer asks for.
func requestPurses(l PeerLimits) purse.Purses {
	return purse.Purses{purse.New(l.Share, l.Burst), purse.New(l.PeakShare, peakTime)}
}
