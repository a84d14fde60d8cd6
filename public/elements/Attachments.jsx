// Under the message about an upload: what became of each file, and a way to remove it.
//
// `props.documents` is what was attached then: [{number, source, told}]. What is attached now is kept by
// public/documents.js, in `window.smallFirstDocuments`; it also takes what is said here to the server.

import { useEffect, useRef, useState } from 'react'

const hsl = (variable) => `hsl(var(--${variable}))`
const QUIET = { color: hsl('muted-foreground') }
const list = (value) => (Array.isArray(value) ? value : [])

/** Null while nobody has said what is attached. */
function useAttached() {
  const [attached, setAttached] = useState(window.smallFirstDocuments || null)
  useEffect(() => {
    const hear = () => setAttached(window.smallFirstDocuments || null)
    hear()
    window.addEventListener('smallfirst:documents', hear)
    return () => window.removeEventListener('smallfirst:documents', hear)
  }, [])
  return attached
}

function Document({ shown, attached }) {
  const [asked, setAsked] = useState(false)
  const outcome = useRef(null)
  const here = attached === null || attached.some((one) => one.number === shown.number)
  const replaced = !here && attached.some((one) => one.source === shown.source)
  useEffect(() => {
    // The button that had the focus is gone.
    if (!here && asked && outcome.current) outcome.current.focus()
  }, [here, asked])
  return (
    <li
      data-testid="attachment"
      style={{ display: 'flex', alignItems: 'flex-start', gap: '0.75rem', padding: '0.4rem 0.7rem' }}
    >
      <span style={{ flex: 1, minWidth: 0, overflowWrap: 'anywhere', opacity: here ? 1 : 0.65 }}>
        <span style={{ fontWeight: 500, textDecoration: here ? 'none' : 'line-through' }}>{shown.source}</span>
        <span style={{ ...QUIET, display: 'block', fontSize: '0.75rem' }}>{shown.told}</span>
      </span>
      {here ? (
        <button
          type="button"
          aria-label={`Remove ${shown.source}`}
          aria-disabled={asked}
          onClick={() => {
            setAsked(true)
            window.postMessage({ smallfirst: 'remove', number: shown.number }, window.location.origin)
          }}
          style={{
            flex: 'none',
            minHeight: '1.6rem',
            padding: '0.1rem 0.55rem',
            border: `1px solid ${hsl('border')}`,
            borderRadius: '0.5rem',
            opacity: asked ? 0.5 : 1,
          }}
        >
          Remove
        </button>
      ) : (
        <span ref={outcome} tabIndex={-1} style={{ ...QUIET, flex: 'none' }}>
          {replaced ? 'Replaced' : 'Removed'}
        </span>
      )}
    </li>
  )
}

export default function Attachments() {
  const attached = useAttached()
  return (
    <ul
      data-testid="attachments"
      aria-label="Documents of this message"
      style={{
        listStyle: 'none',
        margin: 0,
        padding: '0.2rem 0',
        maxWidth: '36rem',
        border: `1px solid ${hsl('border')}`,
        borderRadius: '0.6rem',
        background: hsl('card'),
        color: hsl('card-foreground'),
        fontSize: '0.8125rem',
        lineHeight: '1.2rem',
      }}
    >
      {list(props.documents).map((shown) => (
        <Document key={shown.number} shown={shown} attached={attached} />
      ))}
    </ul>
  )
}
