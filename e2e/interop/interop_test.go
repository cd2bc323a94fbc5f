package interop

import (
	"testing"

	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
)

// TestInterop runs all checks on one ground, side by side: most of the time
// they wait.
func TestInterop(t *testing.T) {
	g := newGround(t)
	for _, cluster := range []string{"east", "west"} {
		g.issueUser(t, admin(cluster))
	}
	services := layout{mode: cmtypes.EndpointSlicesExportModeServicesOnly}
	cached := layout{mode: cmtypes.EndpointSlicesExportModeServicesOnly, cached: true}
	both := layout{mode: cmtypes.EndpointSlicesExportModeServicesAndEndpointSlices}
	sliced := layout{mode: cmtypes.EndpointSlicesExportModeEndpointSlicesOnly}
	cachedSlices := layout{mode: cmtypes.EndpointSlicesExportModeEndpointSlicesOnly, cached: true}
	for _, check := range []struct {
		name string
		run  func(*testing.T, *ground)
	}{
		{"HeartbeatsKeepConnections", heartbeatsKeepConnections},
		{"CiliumReadsUs", ciliumReadsUs},
		{"CiliumSurvivesOurRestarts", ciliumSurvivesOurRestarts},
		{"WeReadServices", weRead(services)},
		{"WeReadCachedServices", weRead(cached)},
		{"WeReadSlicesBesideServices", weRead(both)},
		{"WeReadSlices", weRead(sliced)},
		{"WeReadCachedSlices", weRead(cachedSlices)},
		{"WeReadKVStoreMesh", weReadKVStoreMesh},
		{"WeFollowLostLeases", weFollowLostLeases},
	} {
		t.Run(check.name, func(t *testing.T) {
			t.Parallel()
			check.run(t, g)
		})
	}
}
